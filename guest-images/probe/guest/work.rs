//! The loop of each vCPU: read the clock, note gaps, rewrite the next hot page if one is due, else
//! verify the next page if one is due.
//!
//! No table says which generation a page is in: hot pages are rewritten in order, so it follows
//! from the page's place before or after the cursor. A page that is older than its neighbours
//! has nowhere to hide.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::abi::{
    BAD_DAMAGED, BAD_LOST, BAD_STALE, COMMAND_END, COMMAND_REST, COMMAND_SWEEP, GAP_LOG, GapRecord,
    Header, STATE_RUNNING, VcpuRecord,
};
use crate::clock::{Clock, Reading};
use crate::config::{Config, RATE_MAX};
use crate::content::{Content, LINE_WORDS, Mismatch, PAGE_WORDS};
use crate::memory::{self, Ram};
use crate::steal::Steal;
use crate::{ring0, serial, smp};

const PAGES_PER_MIB: u64 = 256;
const PS_PER_S: u64 = 1_000_000_000_000;
/// Work that fell due in a gap is made up for at most this long: the rate is a rate, not a total.
const MAX_ARREARS_PS: u64 = 20_000_000_000;
/// Generations back that a page is compared with to call it stale.
const STALE_SEARCH: u64 = 64;

/// What all vCPUs share: the settings and the memory they divide among themselves.
pub struct Plan {
    pub config: Config,
    pub ram: Ram,
    pub fill_pages: u64,
    pub hot_pages: u64,
    content: Content,
}

impl Plan {
    pub fn new(config: Config, mut ram: Ram) -> Plan {
        let cpus = config.cpus;
        ram.skip(config.skip_mib.saturating_mul(PAGES_PER_MIB));
        let whole = |mib: u64, most: u64| {
            let pages = mib.saturating_mul(PAGES_PER_MIB).min(most);
            pages - pages % cpus
        };
        let fill_pages = whole(config.fill_mib, ram.pages());
        let hot_pages = whole(config.hot_mib, fill_pages);
        let changing_words = if config.touch_line == 0 {
            PAGE_WORDS
        } else {
            LINE_WORDS
        };
        let content = Content {
            seed: config.seed,
            changing_words,
        };
        Plan {
            config,
            ram,
            fill_pages,
            hot_pages,
            content,
        }
    }
}

/// Something that falls due at a steady rate.
struct Pace {
    interval_ps: u64,
    due_ps: u64,
}

impl Pace {
    fn new(mib_s: u64, cpus: u64, now_ns: u64) -> Pace {
        let interval_ps = match mib_s {
            0 => u64::MAX,
            RATE_MAX => 0,
            _ => PS_PER_S.saturating_mul(cpus) / mib_s.saturating_mul(PAGES_PER_MIB),
        };
        Pace {
            interval_ps,
            due_ps: now_ns * 1000,
        }
    }

    fn is_due(&mut self, now_ns: u64) -> bool {
        let now_ps = now_ns * 1000;
        if self.interval_ps == u64::MAX {
            return false;
        }
        // A clock that was set back must not bring the work to a halt.
        self.due_ps = self.due_ps.min(now_ps + self.interval_ps);
        if now_ps < self.due_ps {
            return false;
        }
        self.due_ps = (self.due_ps + self.interval_ps).max(now_ps.saturating_sub(MAX_ARREARS_PS));
        true
    }
}

/// One vCPU's loop.
pub struct Worker {
    vcpu: usize,
    plan: &'static Plan,
    header: &'static Header,
    record: &'static VcpuRecord,
    clock: Clock,
    steal: Steal,
    /// This vCPU's pages: `first..first + fill`, of which the first `hot` are kept dirty.
    first: u64,
    fill: u64,
    hot: u64,
    /// The next page to rewrite, and the generation it gets.
    cursor: u64,
    generation: u64,
    sweep: u64,
    last: Reading,
    last_steal_ns: u64,
}

impl Worker {
    pub fn new(vcpu: usize, plan: &'static Plan) -> Worker {
        let report = memory::report();
        let clock = Clock::new(vcpu, plan.config.tsc_mhz);
        let fill = plan.fill_pages / plan.config.cpus;
        let last = clock.read();
        Worker {
            vcpu,
            plan,
            header: &report.header,
            record: &report.vcpus[vcpu],
            clock,
            steal: Steal::new(vcpu),
            first: fill * vcpu as u64,
            fill,
            hot: plan.hot_pages / plan.config.cpus,
            cursor: 0,
            generation: 2,
            sweep: 0,
            last,
            last_steal_ns: 0,
        }
    }

    /// Fills this vCPU's slice, then runs for ever.
    pub fn run(mut self) -> ! {
        let config = &self.plan.config;
        self.header.vcpus_up.fetch_add(1, Ordering::AcqRel);
        for page in 0..self.fill {
            let gpa = self.gpa(page);
            // SAFETY: a page of this vCPU's slice.
            self.plan.content.fill(unsafe { memory::page(gpa) }, gpa);
        }
        if config.tick_us != 0 {
            smp::start_timer(self.vcpu, config.tick_us, &self.record.ticks);
        }
        self.last = self.clock.read();
        self.last_steal_ns = self.steal.read_ns();
        let mut hot = Pace::new(config.rate_mib_s, config.cpus, self.last.ns);
        let mut sweep = Pace::new(config.sweep_mib_s, config.cpus, self.last.ns);
        let mut line_ns = self.last.ns + config.serial_ms * 1_000_000;
        self.begin();
        loop {
            let now = self.turn();
            let command = self.header.command.load(Ordering::Relaxed);
            if command & COMMAND_END != 0 {
                ring0::end();
            }
            if self.hot != 0 && command & COMMAND_REST == 0 && hot.is_due(now.ns) {
                self.rewrite_next();
            } else if self.fill != 0 && (command & COMMAND_SWEEP != 0 || sweep.is_due(now.ns)) {
                self.verify_next();
            } else {
                core::hint::spin_loop();
            }
            if self.vcpu == 0 && config.serial_ms != 0 && now.ns >= line_ns {
                line_ns = now.ns + config.serial_ms * 1_000_000;
                self.print_line();
                self.last = self.clock.read();
            }
        }
    }

    /// The last vCPU to be done with its filling speaks for all.
    fn begin(&mut self) {
        let header = self.header;
        if header.vcpus_running.fetch_add(1, Ordering::AcqRel) + 1 < self.plan.config.cpus {
            return;
        }
        header
            .kvmclock
            .store(u64::from(self.clock.is_kvmclock()), Ordering::Relaxed);
        header
            .steal_time
            .store(u64::from(self.steal.is_told()), Ordering::Relaxed);
        header.filled_ns.store(self.last.ns, Ordering::Relaxed);
        header.state.store(STATE_RUNNING, Ordering::Release);
        serial::print(format_args!("probe running\n"));
        self.last = self.clock.read();
    }

    /// Reads the clock and notes how long it has been since the last turn.
    fn turn(&mut self) -> Reading {
        let (last, record) = (self.last, self.record);
        let mut now = self.clock.read();
        let was_stopped = self.clock.was_stopped();
        if was_stopped {
            // It may have been between the two.
            now = self.clock.read();
        }
        self.last = now;
        add(&record.turns, 1);
        record.now_ns.store(now.ns, Ordering::Relaxed);
        record.now_tsc.store(now.tsc, Ordering::Relaxed);
        if now.ns < last.ns {
            add(&record.clock_backwards, 1);
        }
        if now.tsc < last.tsc {
            add(&record.tsc_backwards, 1);
        }
        let clock_ns = now.ns.saturating_sub(last.ns);
        let tsc_ns = self.clock.ticks_to_ns(now.tsc.saturating_sub(last.tsc));
        raise(&record.max_gap_clock_ns, clock_ns);
        raise(&record.max_gap_tsc_ns, tsc_ns);
        let steal_now_ns = self.steal.read_ns();
        let steal_ns = steal_now_ns.saturating_sub(self.last_steal_ns);
        self.last_steal_ns = steal_now_ns;
        raise(&record.max_pause_ns, tsc_ns.saturating_sub(steal_ns));
        let note = |gap: &GapRecord| {
            gap.at_ns.store(now.ns, Ordering::Relaxed);
            gap.tsc_ns.store(tsc_ns, Ordering::Relaxed);
            gap.clock_ns.store(clock_ns, Ordering::Relaxed);
            gap.steal_ns.store(steal_ns, Ordering::Relaxed);
        };
        if was_stopped {
            note(&record.last_stop);
            add(&record.stops, 1);
        }
        if clock_ns.max(tsc_ns) >= self.plan.config.gap_us * 1000 {
            let count = record.gap_count.load(Ordering::Relaxed);
            note(&record.gaps[count as usize % GAP_LOG]);
            record.gap_count.store(count + 1, Ordering::Release);
        }
        now
    }

    fn gpa(&self, page: u64) -> u64 {
        self.plan.ram.gpa(self.first + page)
    }

    /// The generation a page of this slice must be in now.
    fn expected(&self, page: u64) -> u64 {
        if page >= self.hot {
            1
        } else if page < self.cursor {
            self.generation
        } else {
            self.generation - 1
        }
    }

    fn rewrite_next(&mut self) {
        let page = self.cursor;
        self.verify(page);
        let gpa = self.gpa(page);
        // SAFETY: a page of this vCPU's slice.
        self.plan
            .content
            .rewrite(unsafe { memory::page(gpa) }, gpa, self.generation);
        add(&self.record.written_pages, 1);
        self.cursor += 1;
        if self.cursor == self.hot {
            self.cursor = 0;
            self.generation += 1;
            add(&self.record.passes, 1);
        }
    }

    fn verify_next(&mut self) {
        self.verify(self.sweep);
        self.sweep += 1;
        if self.sweep == self.fill {
            self.sweep = 0;
            add(&self.record.sweeps, 1);
        }
    }

    fn verify(&self, page: u64) {
        let (gpa, generation) = (self.gpa(page), self.expected(page));
        // SAFETY: a page of this vCPU's slice, looked at only here for now.
        let words = unsafe { memory::page(gpa) };
        add(&self.record.verified_pages, 1);
        if let Err(mismatch) = self.plan.content.verify(words, gpa, generation) {
            self.report_bad(words, gpa, generation, mismatch);
        }
    }

    #[cold]
    fn report_bad(&self, words: &[u64; PAGE_WORDS], gpa: u64, generation: u64, bad: Mismatch) {
        let (record, content) = (self.record, &self.plan.content);
        let count = record.bad_pages.load(Ordering::Relaxed);
        if count == 0 {
            let oldest = generation.saturating_sub(STALE_SEARCH).max(1);
            let kind = if words.iter().all(|word| *word == 0) {
                BAD_LOST
            } else if (oldest..generation).any(|old| content.verify(words, gpa, old).is_ok()) {
                BAD_STALE
            } else {
                BAD_DAMAGED
            };
            record.bad_gpa.store(gpa, Ordering::Relaxed);
            record.bad_kind.store(kind, Ordering::Relaxed);
            record.bad_generation.store(generation, Ordering::Relaxed);
            record.bad_word.store(bad.word as u64, Ordering::Relaxed);
            record.bad_found.store(bad.found, Ordering::Relaxed);
        }
        record.bad_pages.store(count + 1, Ordering::Release);
    }

    fn print_line(&self) {
        let vcpus = &memory::report().vcpus[..self.plan.config.cpus as usize];
        let sum = |field: fn(&VcpuRecord) -> &AtomicU64| -> u64 {
            vcpus
                .iter()
                .map(|record| field(record).load(Ordering::Relaxed))
                .sum()
        };
        serial::print(format_args!(
            "probe at {} ms: {} pages written, {} verified, {} bad, longest gap {} us, pause {} us\n",
            self.last.ns / 1_000_000,
            sum(|record| &record.written_pages),
            sum(|record| &record.verified_pages),
            sum(|record| &record.bad_pages),
            self.record.max_gap_tsc_ns.load(Ordering::Relaxed) / 1000,
            self.record.max_pause_ns.load(Ordering::Relaxed) / 1000,
        ));
    }
}

/// These words have one writer each, so no locked instruction is needed.
fn add(word: &AtomicU64, amount: u64) {
    word.store(word.load(Ordering::Relaxed) + amount, Ordering::Relaxed);
}

fn raise(word: &AtomicU64, value: u64) {
    if value > word.load(Ordering::Relaxed) {
        word.store(value, Ordering::Relaxed);
    }
}
