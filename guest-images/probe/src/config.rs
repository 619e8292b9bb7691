//! The probe's settings, as its kernel command line: `cpus=2 fill_mib=1024 hot_mib=256
//! rate_mib_s=500`.

use core::fmt;

use crate::abi::MAX_VCPUS;

/// The rate that means "as fast as the vCPU can".
pub const RATE_MAX: u64 = u64::MAX;

/// What the probe is to do. `Display` gives the command line that says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// `cpus`: vCPUs to start and use, with APIC ids 0, 1, 2, ...
    pub cpus: u64,
    /// `skip_mib`: memory to leave alone before that which is filled, to reach what lies high.
    pub skip_mib: u64,
    /// `fill_mib`: memory to fill; what does not fit in RAM is left out.
    pub fill_mib: u64,
    /// `hot_mib`: of that, memory to keep dirty.
    pub hot_mib: u64,
    /// `rate_mib_s`: how fast to dirty it, over all vCPUs; `max` for full speed.
    pub rate_mib_s: u64,
    /// `sweep_mib_s`: how fast to verify all filled memory, over all vCPUs; `max` for full speed.
    pub sweep_mib_s: u64,
    /// `touch_line=1`: rewrite only the first 64 bytes of a hot page instead of all of it.
    pub touch_line: u64,
    /// `seed`: of all page contents.
    pub seed: u64,
    /// `gap_us`: the shortest gap to log.
    pub gap_us: u64,
    /// `serial_ms`: how often to print a line with the counters; 0 for never.
    pub serial_ms: u64,
    /// `tick_us`: period of each vCPU's local timer; 0 for none.
    pub tick_us: u64,
    /// `tsc_mhz`: assumed where there is no kvmclock.
    pub tsc_mhz: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            cpus: 1,
            skip_mib: 0,
            fill_mib: 0,
            hot_mib: 0,
            rate_mib_s: RATE_MAX,
            sweep_mib_s: 256,
            touch_line: 0,
            seed: 1,
            gap_us: 1000,
            serial_ms: 0,
            tick_us: 0,
            tsc_mhz: 1000,
        }
    }
}

impl Config {
    /// Reads a command line. Words it does not know, and values that are no numbers, are left
    /// out: kernel command lines carry much that is for others.
    pub fn parse(cmdline: &str) -> Config {
        let mut config = Config::default();
        for word in cmdline.split_ascii_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            let value = if value == "max" {
                Ok(RATE_MAX)
            } else {
                value.parse()
            };
            if let (Some(field), Ok(value)) = (config.field(name), value) {
                *field = value;
            }
        }
        config.cpus = config.cpus.clamp(1, MAX_VCPUS as u64);
        config.fill_mib = config.fill_mib.max(config.hot_mib);
        config
    }

    fn field(&mut self, name: &str) -> Option<&mut u64> {
        Some(match name {
            "cpus" => &mut self.cpus,
            "skip_mib" => &mut self.skip_mib,
            "fill_mib" => &mut self.fill_mib,
            "hot_mib" => &mut self.hot_mib,
            "rate_mib_s" => &mut self.rate_mib_s,
            "sweep_mib_s" => &mut self.sweep_mib_s,
            "touch_line" => &mut self.touch_line,
            "seed" => &mut self.seed,
            "gap_us" => &mut self.gap_us,
            "serial_ms" => &mut self.serial_ms,
            "tick_us" => &mut self.tick_us,
            "tsc_mhz" => &mut self.tsc_mhz,
            _ => return None,
        })
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config {
            cpus,
            skip_mib,
            fill_mib,
            hot_mib,
            touch_line,
            seed,
            ..
        } = self;
        let Config {
            gap_us,
            serial_ms,
            tick_us,
            tsc_mhz,
            ..
        } = self;
        write!(f, "cpus={cpus} skip_mib={skip_mib} ")?;
        write!(f, "fill_mib={fill_mib} hot_mib={hot_mib} ")?;
        for (name, rate) in [
            ("rate_mib_s", self.rate_mib_s),
            ("sweep_mib_s", self.sweep_mib_s),
        ] {
            if rate == RATE_MAX {
                write!(f, "{name}=max ")?;
            } else {
                write!(f, "{name}={rate} ")?;
            }
        }
        write!(f, "touch_line={touch_line} seed={seed} gap_us={gap_us} ")?;
        write!(
            f,
            "serial_ms={serial_ms} tick_us={tick_us} tsc_mhz={tsc_mhz}"
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_command_line_panics_and_all_are_bounded(text: String, words in "([a-z_]+=[0-9a-z]*[ ]*)*") {
            for line in [text, words] {
                let config = Config::parse(&line);
                assert!((1..=MAX_VCPUS as u64).contains(&config.cpus));
                assert!(config.fill_mib >= config.hot_mib);
                assert_eq!(Config::parse(&config.to_string()), config);
            }
        }

        #[test]
        fn what_was_meant_is_what_is_read(numbers: [u64; 10], touch_line in 0u64..2) {
            let [cpus, skip_mib, fill_mib, hot_mib, rate_mib_s, ..] = numbers;
            let [.., sweep_mib_s, seed, gap_us, serial_ms, tick_us] = numbers;
            let cpus = 1 + cpus % MAX_VCPUS as u64;
            let hot_mib = hot_mib.min(fill_mib);
            let config = Config {
                cpus, skip_mib, fill_mib, hot_mib, rate_mib_s, sweep_mib_s,
                touch_line, seed, gap_us, serial_ms, tick_us, ..Config::default()
            };
            assert_eq!(Config::parse(&config.to_string()), config);
        }
    }

    #[test]
    fn a_command_line_says_what_the_settings_are() {
        let config = Config {
            cpus: 3,
            skip_mib: 5,
            fill_mib: 9,
            hot_mib: 7,
            sweep_mib_s: 0,
            ..Config::default()
        };
        assert_eq!(Config::parse(&config.to_string()), config);
        assert_eq!(Config::parse(""), Config::default());
    }

    #[test]
    fn what_makes_no_sense_is_left_out_or_bounded() {
        let config =
            Config::parse("quiet cpus=1000 hot_mib=5 seed=x seed rate_mib_s=max gap_us=-1");
        let expected = Config {
            cpus: 64,
            hot_mib: 5,
            fill_mib: 5,
            ..Config::default()
        };
        assert_eq!(config, expected);
    }
}
