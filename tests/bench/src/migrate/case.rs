//! What the guest does while it is moved: the cases of goals.md's table.

/// The guest's memory.
pub const MEMORY_MIB: u64 = 2048;

/// Gaps shorter than this are the machine's own noise.
macro_rules! settings {
    ($settings:literal) => {
        concat!("gap_us=300 sweep_mib_s=0 ", $settings)
    };
}

/// One thing that a guest may be doing.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name in tables.
    pub name: &'static str,
    /// The probe's settings.
    pub settings: &'static str,
    /// An operator has paused it: nothing takes processors from the copying.
    pub at_rest: bool,
    /// Its processors, which share the work.
    pub cpus: u32,
}

impl Case {
    /// What the probe is told.
    pub fn cmdline(&self) -> String {
        format!("cpus={} {}", self.cpus, self.settings)
    }
}

/// What the data path does by itself.
pub const AT_REST: Case = Case {
    name: "1 GiB, at rest",
    settings: settings!("fill_mib=1024"),
    at_rest: true,
    cpus: 1,
};

/// From nothing to do to the worst.
pub const CASES: [Case; 4] = [
    Case {
        name: "untouched",
        settings: settings!(""),
        at_rest: false,
        cpus: 1,
    },
    Case {
        name: "1 GiB, 4 MiB hot",
        settings: settings!("fill_mib=1024 hot_mib=4 rate_mib_s=50"),
        at_rest: false,
        cpus: 1,
    },
    Case {
        name: "1 GiB, 256 MiB at 500 MB/s",
        settings: settings!("fill_mib=1024 hot_mib=256 rate_mib_s=477"),
        at_rest: false,
        cpus: 1,
    },
    Case {
        name: "1 GiB, 512 MiB at full speed",
        settings: settings!("fill_mib=1024 hot_mib=512 rate_mib_s=max"),
        at_rest: false,
        cpus: 1,
    },
];
