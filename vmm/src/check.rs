//! Examines the host: what will work, what will not, and what helps.

mod ring0;

use std::fs;
use std::path::Path;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CLOCK_REALTIME, KVM_DIRTY_LOG_INITIALLY_SET,
};
use kvm_ioctls::{Cap, Kvm};
use vmm_core::spec::CPUS_MAX;

use crate::aside;
use crate::error::one_line;
use ring0::Ring0;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// As it should be.
    Good,
    /// Works, with a loss.
    Poor,
    /// No guest can run.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How to take it.
    pub grade: Grade,
    /// What was found and, unless it is good, what helps.
    pub text: String,
}

fn good(text: impl Into<String>) -> Finding {
    Finding {
        grade: Grade::Good,
        text: text.into(),
    }
}

fn poor(text: impl Into<String>) -> Finding {
    Finding {
        grade: Grade::Poor,
        text: text.into(),
    }
}

fn bad(text: impl Into<String>) -> Finding {
    Finding {
        grade: Grade::Bad,
        text: text.into(),
    }
}

/// Look at everything.
pub fn examine() -> Vec<Finding> {
    let mut findings = Vec::new();
    match crate::kvm::open() {
        Ok(kvm) => {
            findings.push(good("/dev/kvm is there and has what guests need"));
            findings.push(ring0(&kvm));
            findings.extend([dirty_log(&kvm), clock(&kvm), processors(&kvm)]);
        }
        Err(error) => findings.push(bad(one_line(&error))),
    }
    findings.extend([
        accesses(),
        transparent_huge_pages(),
        reserved_huge_pages(),
        tap(),
    ]);
    findings
}

fn ring0(kvm: &Kvm) -> Finding {
    match ring0::probe(kvm) {
        Ok(Ring0::Runs) => good("guest ring 0 runs on the processor: stock kernels boot"),
        Ok(Ring0::Emulated) => poor(
            "guest ring 0 is run by KVM's instruction emulator: only small guests made for that \
             run here (the probe does), stock kernels do not; use a host with hardware \
             virtualisation (vmx or svm in /proc/cpuinfo)",
        ),
        Err(why) => bad(format!(
            "a guest of five instructions does not run: {why}; look at the host's dmesg"
        )),
    }
}

fn dirty_log(kvm: &Kvm) -> Finding {
    let manual = kvm.check_extension_raw(u64::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
    if manual & KVM_DIRTY_LOG_INITIALLY_SET.cast_signed() != 0 {
        return good("live migration: the dirty log starts at once and is cleared piece by piece");
    }
    poor(
        "live migration: this kernel write-protects all memory when the dirty log starts, some \
         5 ms for each GiB; Linux 5.8 and later do not",
    )
}

fn clock(kvm: &Kvm) -> Finding {
    let flags = kvm.check_extension_int(Cap::AdjustClock);
    if flags & KVM_CLOCK_REALTIME.cast_signed() != 0 {
        return good("live migration: the guest's clock makes its stop good");
    }
    good(
        "live migration: the guest's clock makes its stop good to some microseconds; Linux 5.16 \
         and later do better",
    )
}

fn processors(kvm: &Kvm) -> Finding {
    let most = kvm.get_max_vcpus().min(CPUS_MAX as usize);
    let recommended = kvm.get_nr_vcpus().min(most);
    good(format!(
        "a guest may have {most} processors; {recommended} at most run well here"
    ))
}

fn accesses() -> Finding {
    match aside::lot() {
        Ok(_) => good("memory that guests read or write is told from idle memory"),
        Err(why) => poor(format!(
            "of guests' memory only what they write is told from idle memory, not what they \
             read: {why}"
        )),
    }
}

fn transparent_huge_pages() -> Finding {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    match fs::read_to_string(path) {
        Ok(modes) if !modes.contains("[never]") => {
            good("guests get transparent huge pages where memory allows")
        }
        _ => poor(format!(
            "no transparent huge pages: guests run slower; `echo madvise > {path}`"
        )),
    }
}

fn reserved_huge_pages() -> Finding {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = field(&meminfo, "HugePages_Free:").unwrap_or(0);
    let kib = field(&meminfo, "Hugepagesize:").unwrap_or(0);
    if free > 0 {
        let mib = free * kib / 1024;
        return good(format!("{mib} MiB of huge pages are free for --hugepages"));
    }
    good("no huge pages are reserved; guests with --hugepages need `sysctl vm.nr_hugepages=N`")
}

fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn tap() -> Finding {
    let path = Path::new("/dev/net/tun");
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => good("network cards can be plugged into taps"),
        Err(error) => poor(format!(
            "no network for guests: cannot open /dev/net/tun ({error}); `modprobe tun`, and give \
             this user access"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_that_is_not_good_says_what_helps() {
        let findings = examine();
        assert!(findings.len() >= 5);
        for finding in findings {
            assert!(finding.text.len() > 20 && !finding.text.contains('\n'));
            if finding.grade != Grade::Good {
                assert!(finding.text.contains([';', ':']), "{}", finding.text);
            }
        }
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(
            field("A: 1\nHugePages_Free:       12\n", "HugePages_Free:"),
            Some(12)
        );
        assert_eq!(field("", "HugePages_Free:"), None);
    }
}
