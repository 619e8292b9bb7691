//! Examines the host: what will work, what will not, and what helps.

mod ring0;

use std::fs;
use std::io;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CLOCK_REALTIME, KVM_DIRTY_LOG_INITIALLY_SET,
};
use kvm_ioctls::{Cap, Kvm};
use vmm_core::spec::{CPUS_MAX, HUGE_PAGE_MIB};

use crate::aside;
use crate::error::one_line;
use ring0::Ring0;

const TUN: &str = "/dev/net/tun";
const THP_MODES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// How many huge pages of the size that guests take are free.
const FREE_HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

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
            findings.push(ring0(ring0::probe(&kvm)));
            let manual = u64::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
            findings.push(dirty_log(kvm.check_extension_raw(manual)));
            findings.push(clock(kvm.check_extension_int(Cap::AdjustClock)));
            findings.push(processors(&kvm));
        }
        Err(error) => findings.push(bad(one_line(&error))),
    }
    findings.extend([
        accesses(aside::lot().map(|_| ())),
        transparent_huge_pages(read(THP_MODES).as_deref()),
        reserved_huge_pages(read(FREE_HUGE_PAGES).as_deref()),
        tap(open_tun()),
    ]);
    findings
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn open_tun() -> io::Result<()> {
    let tun = fs::OpenOptions::new().read(true).write(true).open(TUN);
    tun.map(|_| ())
}

fn ring0(ran: Result<Ring0, String>) -> Finding {
    match ran {
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

fn dirty_log(manual_protect: i32) -> Finding {
    if manual_protect & KVM_DIRTY_LOG_INITIALLY_SET.cast_signed() != 0 {
        return good("live migration: the dirty log starts at once and is cleared piece by piece");
    }
    poor(
        "live migration: this kernel write-protects all memory when the dirty log starts, some \
         5 ms for each GiB; Linux 5.8 and later do not",
    )
}

fn clock(adjust: i32) -> Finding {
    if adjust & KVM_CLOCK_REALTIME.cast_signed() != 0 {
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

fn accesses(lot: Result<(), &str>) -> Finding {
    match lot {
        Ok(()) => good("userfaultfd: memory that guests read or write is told from idle memory"),
        Err(why) => poor(format!(
            "of guests' memory only what they write is told from idle memory, not what they \
             read: {why}"
        )),
    }
}

fn transparent_huge_pages(modes: Option<&str>) -> Finding {
    match modes {
        Some(modes) if !modes.contains("[never]") => {
            good("guests get transparent huge pages where memory allows")
        }
        _ => poor(format!(
            "no transparent huge pages: guests run slower; `echo madvise > {THP_MODES}`"
        )),
    }
}

fn reserved_huge_pages(free: Option<&str>) -> Finding {
    match free.and_then(|free| free.trim().parse::<u64>().ok()) {
        None | Some(0) => good(
            "no huge pages are reserved; guests with --hugepages need `sysctl vm.nr_hugepages=N`",
        ),
        Some(free) => {
            let mib = free.saturating_mul(HUGE_PAGE_MIB);
            good(format!("{mib} MiB of huge pages are free for --hugepages"))
        }
    }
}

fn tap(tun: io::Result<()>) -> Finding {
    match tun {
        Ok(()) => good("network cards can be plugged into taps"),
        Err(error) => poor(format!(
            "no network for guests: cannot open {TUN} ({error}); `modprobe tun`, and give this \
             user access"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_is_looked_at_on_any_machine() {
        let findings = examine();
        for subject in [
            "kvm",
            "only what they write|userfaultfd",
            "transparent",
            "--hugepages",
            "network",
        ] {
            let is_it =
                |finding: &Finding| subject.split('|').any(|word| finding.text.contains(word));
            assert_eq!(
                findings.iter().filter(|finding| is_it(finding)).count(),
                1,
                "{subject}"
            );
        }
        for finding in findings {
            assert!(!finding.text.contains('\n'), "{finding:?}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_what_helps() {
        let refused = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
        for (finding, remedy) in [
            (dirty_log(0), "Linux 5.8"),
            (accesses(Err("it is forbidden; run as root")), "run as root"),
            (transparent_huge_pages(None), "echo madvise"),
            (
                transparent_huge_pages(Some("always madvise [never]\n")),
                "echo madvise",
            ),
            (tap(refused()), "modprobe tun"),
            (ring0(Ok(Ring0::Emulated)), "use a host with"),
        ] {
            assert_eq!(finding.grade, Grade::Poor, "{finding:?}");
            assert!(finding.text.contains(remedy), "{finding:?}");
        }
        let broken = ring0(Err("Shutdown".to_owned()));
        assert_eq!(broken.grade, Grade::Bad);
        assert!(broken.text.contains("Shutdown; look at"), "{broken:?}");
    }

    #[test]
    fn what_is_there_is_good() {
        for (finding, word) in [
            (
                dirty_log(KVM_DIRTY_LOG_INITIALLY_SET.cast_signed()),
                "piece by piece",
            ),
            (clock(0), "5.16"),
            (clock(KVM_CLOCK_REALTIME.cast_signed()), "stop good"),
            (accesses(Ok(())), "userfaultfd"),
            (
                transparent_huge_pages(Some("always [madvise] never\n")),
                "where memory allows",
            ),
            (reserved_huge_pages(Some("12\n")), "24 MiB"),
            (reserved_huge_pages(Some("0\n")), "sysctl vm.nr_hugepages"),
            (reserved_huge_pages(None), "sysctl vm.nr_hugepages"),
            (tap(Ok(())), "taps"),
            (ring0(Ok(Ring0::Runs)), "stock kernels boot"),
        ] {
            assert_eq!(finding.grade, Grade::Good, "{finding:?}");
            assert!(finding.text.contains(word), "{finding:?}");
        }
    }
}
