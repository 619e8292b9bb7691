//! Stock Linux guests on a host, by `vmm run` alone: no cluster, no lease.

use lab::host::DATASTORE;
use lab::scenario::Outcome;
use lab::{Host, Lab, empty_qcow2, eventually};

use crate::guest::{Guest, STOCK, Wish};

/// Exit code of a VMM whose guest panicked.
const PANICKED: i32 = 10;
/// Size of a huge page.
const HUGE_PAGE_MIB: u32 = 2;
/// The largest frame without segmentation offload: an Ethernet header and the MTU.
const FRAME_BYTES: u64 = 1514;
/// How much a guest sends, and receives.
const CARRIED_MIB: u64 = 4;
/// Where scenarios keep the disks that they make.
const DISKS: &str = "/srv/vmstore/disks-of-guests";
/// What a raw image may take that holds nothing: blocks of the file system itself.
const LEFT_KIB: u64 = 512;
/// What a data disk holds, and what fio writes of it.
const DATA_DISK_MIB: u64 = 64;
const VERIFIED_MIB: u64 = 4;

/// Disks on the datastore; gone with this value.
struct Disks<'lab>(&'lab Host);

impl<'lab> Disks<'lab> {
    fn new(host: &'lab Host) -> lab::Result<Self> {
        host.run(&format!("mkdir {DISKS}"))?;
        Ok(Self(host))
    }

    /// A copy of the catalogue's Debian disk; its path.
    fn of_debian(&self, format: &str) -> lab::Result<String> {
        self.of("debian", format)
    }

    /// A copy of an image's disk; its path.
    fn of(&self, image: &str, format: &str) -> lab::Result<String> {
        let (from, to) = (
            format!("{DATASTORE}/images/{image}/root.{format}"),
            format!("{DISKS}/root.{format}"),
        );
        self.0.run(&format!("cp --reflink=always {from} {to}"))?;
        Ok(to)
    }
}

impl Drop for Disks<'_> {
    fn drop(&mut self) {
        let _ = self.0.run(&format!("rm -rf {DISKS}"));
    }
}

/// An ordinary user of the group kvm, and huge pages for one guest; all as it was
/// before with this value.
struct Operator<'lab>(&'lab Host);

impl<'lab> Operator<'lab> {
    const NAME: &'static str = "operator";

    fn new(host: &'lab Host, memory_mib: u32) -> lab::Result<Self> {
        let name = Self::NAME;
        let operator = Self(host);
        host.run(&format!(
            "echo '{name}:x:1000:1000::/tmp:/bin/sh' >> /etc/passwd && \
             sed -i 's/^kvm:.*/&{name}/' /etc/group"
        ))?;
        let pages = memory_mib / HUGE_PAGE_MIB;
        eventually("huge pages on the host", || {
            let reserve = format!(
                "echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory; \
                 echo {pages} > /proc/sys/vm/nr_hugepages; cat /proc/sys/vm/nr_hugepages"
            );
            (host.run(&reserve).ok()? == pages.to_string()).then_some(())
        })?;
        Ok(operator)
    }
}

impl Drop for Operator<'_> {
    fn drop(&mut self) {
        let name = Self::NAME;
        let _ = self.0.run(&format!(
            "echo 0 > /proc/sys/vm/nr_hugepages; \
             sed -i 's/{name}$//' /etc/group; sed -i '/^{name}:/d' /etc/passwd"
        ));
    }
}

/// From an initramfs, through a tap and the bridge, to an answer on another host; a reboot is
/// a fresh machine in the same process, and the power button ends it. No root is needed for
/// it, and memory comes from the host's pool of huge pages.
pub fn a_busybox_guest_answers_reboots_in_place_and_powers_off(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    let wish = Wish {
        user: Operator::NAME,
        hugepages: true,
        ..Wish::default()
    };
    let _operator = Operator::new(a, wish.memory_mib)?;
    let said = a.run(&format!("su {} -c '/opt/godwit/vmm check'", Operator::NAME))?;
    assert!(said.contains("stock kernels boot"), "{said}");
    assert!(said.contains("MiB of huge pages are free"), "{said}");
    cannot_run(a, "nobody", "", "add it to the group kvm")?;
    let guest = Guest::start(a, wish)?;
    let page = guest.answers(b)?;
    assert_eq!(page.host, "web1");
    let process = guest.fact("pid")?;
    guest.log_in()?;
    carries_large_frames_both_ways(&guest)?;
    guest.send("reboot")?;
    let again = eventually("the guest answering after its reboot", || {
        guest.page(b).filter(|again| again.boot != page.boot)
    })?;
    assert_eq!(again.host, "web1");
    assert_eq!((guest.fact("reboots")?, guest.fact("pid")?), (1, process));
    let owner = a.run(&format!("stat -c %U /proc/{process}"))?;
    assert_eq!(owner, Operator::NAME);
    guest.control("power-button")?;
    assert_eq!(guest.ends()?, 0, "of vmm after the power button");
    drop(guest);
    asks_for_its_address(a, b)
}

/// Some MiB go from the guest to its host and back, over its tap: they come back as they went, in
/// frames that only checksum and segmentation offloads carry.
fn carries_large_frames_both_ways(guest: &Guest<'_>) -> Outcome {
    let (host, here) = (guest.host(), guest.host().address);
    let before = guest.counters()?["nets"][0].clone();
    guest.run(&format!(
        "dd if=/dev/urandom of=/www/sent bs=1M count={CARRIED_MIB} 2>/dev/null"
    ))?;
    let serve = "mkdir /tmp/carried && wget -q -O /tmp/carried/sent http://10.0.0.100/sent && \
                 httpd -p 8099 -h /tmp/carried";
    host.run(serve)?;
    let returned = guest.run(&format!(
        "wget -q -O /tmp/returned http://{here}:8099/sent && cmp /www/sent /tmp/returned"
    ));
    host.run("killall httpd; rm -r /tmp/carried")?;
    returned?;
    let after = &guest.counters()?["nets"][0];
    let grown = |what: &str| after[what].as_u64().unwrap_or(0) - before[what].as_u64().unwrap_or(0);
    for (frames, bytes) in [("sent", "sent_bytes"), ("received", "received_bytes")] {
        let (frames, bytes) = (grown(frames), grown(bytes));
        assert!(bytes > CARRIED_MIB << 20, "{bytes} bytes: {after}");
        assert!(
            bytes / frames > FRAME_BYTES,
            "{frames} frames, {bytes} bytes: {after}"
        );
    }
    Ok(())
}

/// A guest that is told nothing gets its name and address by DHCP, and a console in a file.
fn asks_for_its_address(host: &Host, from: &Host) -> Outcome {
    let conf = "interface br0\nstart 10.0.0.100\nend 10.0.0.100\nlease_file /tmp/leases\n\
                opt subnet 255.255.255.0\nopt hostname leased\n";
    host.run(&format!(
        "printf '{conf}' > /tmp/udhcpd.conf && touch /tmp/leases && udhcpd -S /tmp/udhcpd.conf"
    ))?;
    let console = "/run/web1/console";
    let asked = Guest::start(
        host,
        Wish {
            dhcp: true,
            console_file: Some(console),
            ..Wish::default()
        },
    )
    .and_then(|guest| Ok((guest.answers(from)?, guest)));
    host.run("killall udhcpd; rm /tmp/udhcpd.conf /tmp/leases")?;
    let (page, guest) = asked?;
    assert_eq!(page.host, "leased");
    let said = host.run(&format!("cat {console}"))?;
    assert!(said.contains("# "), "the shell's prompt: {said:?}");
    guest.control("power-off")?;
    assert_eq!(guest.ends()?, 0, "of vmm after power-off");
    Ok(())
}

/// `user` is refused a guest of these settings, in one line that says `why`.
fn cannot_run(host: &Host, user: &str, settings: &str, why: &str) -> Outcome {
    let line = format!(
        "/opt/godwit/vmm run --kernel {DATASTORE}/images/busybox/vmlinux --memory 96 {settings}"
    );
    let refused = host.exec(&["su", "-s", "/bin/sh", "-c", &line, user])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!((refused.code, said.lines().count()), (1, 1), "{said}");
    assert!(said.contains(why), "{said}");
    Ok(())
}

/// Debian as it is packaged (the bzImage, one processor) on a raw disk on NFS: its VMM is killed
/// as it writes, the disk is clean, and the guest goes on from it. Beside it another guest
/// panics, which is told and harms nobody.
pub fn a_debian_guest_outlives_its_vmm_on_a_raw_disk(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    let disks = Disks::new(a)?;
    let disk = disks.of_debian("raw")?;
    let wish = Wish {
        image: "debian",
        kernel: "vmlinuz",
        memory_mib: 256,
        disks: vec![format!("path={disk},format=raw")],
        ..Wish::default()
    };
    let guest = Guest::start(a, wish.clone())?;
    let first = guest.answers(b)?;
    assert_eq!(first.host, "web1");
    for host in [a, b] {
        cannot_run(
            host,
            "root",
            &format!("--disk path={disk}"),
            "is in use by another",
        )?;
    }

    let beside = Guest::start(
        a,
        Wish {
            name: "web2",
            number: 101,
            ..Wish::default()
        },
    )?;
    assert_eq!(beside.answers(b)?.host, "web2");
    beside.log_in()?;
    beside.send("echo c > /proc/sysrq-trigger")?;
    assert_eq!(beside.ends()?, PANICKED, "of vmm after a kernel panic");
    drop(beside);

    let last = eventually("the counter on the guest's disk going on", || {
        guest.page(b).filter(|page| page.counter > first.counter)
    })?;
    guest.kill()?;
    drop(guest);
    // The journal is replayed on a copy, so that the guest itself meets the disk as it was left.
    a.run(&format!(
        "cp --reflink=always {disk} {disk}.copy && e2fsck -p {disk}.copy && e2fsck -fn {disk}.copy"
    ))?;
    let guest = Guest::start(a, wish)?;
    let again = guest.answers(b)?;
    assert_ne!(again.boot, last.boot);
    assert!(again.counter >= last.counter, "{again:?} after {last:?}");
    guest.log_in()?;
    assert!(guest.run("guest-service check")?.contains("all right"));
    guest.send("reboot")?;
    let last = again;
    let again = eventually("Debian answering after its reboot", || {
        guest.page(b).filter(|page| page.boot != last.boot)
    })?;
    assert!(again.counter >= last.counter, "{again:?} after {last:?}");
    assert_eq!(guest.fact("reboots")?, 1);
    guest.log_in()?;
    guest.send("poweroff")?;
    assert_eq!(guest.ends()?, 0, "of vmm after poweroff");
    a.run(&format!("e2fsck -fn {disk}"))?;
    Ok(())
}

/// Debian with two processors on a qcow2 disk; on two more disks, raw and qcow2, fio finds all
/// it wrote, and what is discarded is given back to the storage.
pub fn a_debian_guest_finds_what_fio_wrote(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    let disks = Disks::new(a)?;
    let root = disks.of_debian("qcow2")?;
    a.run(&format!("truncate -s {DATA_DISK_MIB}M {DISKS}/data.raw"))?;
    a.push(
        &format!("{DISKS}/data.qcow2"),
        &empty_qcow2(DATA_DISK_MIB << 20)?,
    )?;
    let guest = Guest::start(
        a,
        Wish {
            image: "debian",
            cpus: 2,
            memory_mib: 256,
            disks: vec![
                format!("path={root},format=qcow2"),
                format!("path={DISKS}/data.raw,format=raw"),
                format!("path={DISKS}/data.qcow2,format=qcow2"),
            ],
            ..Wish::default()
        },
    )?;
    assert_eq!(guest.answers(b)?.host, "web1");
    guest.log_in()?;
    assert_eq!(guest.run("nproc")?, "2");
    guest.run(&format!(
        "fio --size={VERIFIED_MIB}M --rw=randwrite --bssplit=4k/50:16k/30:64k/20 --direct=1 \
         --ioengine=libaio --iodepth=16 --fsync=64 --verify=crc32c --verify_fatal=1 --do_verify=1 \
         --name=raw --filename=/dev/vdb --name=qcow2 --filename=/dev/vdc >/tmp/fio || cat /tmp/fio; \
         test $(grep -c 'err= 0' /tmp/fio) = 2"
    ))?;
    for (disk, image) in [("vdb", "data.raw"), ("vdc", "data.qcow2")] {
        let queue = format!("/sys/block/{disk}");
        let said = guest.run(&format!("cat {queue}/queue/write_cache; ls {queue}/mq"))?;
        let queues = said
            .strip_prefix("write back")
            .map(|rest| rest.split_ascii_whitespace().count());
        assert_eq!(
            queues,
            Some(2),
            "Linux flushes {disk} and has a queue for each processor: {said}"
        );
        gives_back_what_is_discarded(&guest, disk, image)?;
    }
    let counters = guest.counters()?;
    for disk in counters["disks"].as_array().into_iter().flatten().skip(1) {
        let count = |what: &str| disk[what].as_u64().unwrap_or(0);
        assert!(count("flushes") > 0 && count("discards") > 0, "{disk}");
        assert_eq!(count("errors"), 0, "{disk}");
    }
    guest.control("power-button")?;
    assert_eq!(guest.ends()?, 0, "of vmm after the power button");
    Ok(())
}

/// Half of what was written to a disk is zeroed, then all is discarded: the guest reads zeroes, and a
/// raw image takes next to no room on the storage. A qcow2 image does not shrink.
fn gives_back_what_is_discarded(guest: &Guest<'_>, disk: &str, image: &str) -> Outcome {
    let taken_kib = || -> lab::Result<u64> {
        let said = guest
            .host()
            .run(&format!("sync; du -k {DISKS}/{image} | cut -f1"))?;
        Ok(said.parse().map_err(|_| format!("du says {said}"))?)
    };
    let before = taken_kib()?;
    assert!(
        before >= VERIFIED_MIB << 10,
        "{before} KiB of {image} written"
    );
    let (written, half) = (VERIFIED_MIB << 20, VERIFIED_MIB << 19);
    guest.run(&format!(
        "blkdiscard -z -l {half} /dev/{disk} && cmp -n {half} /dev/{disk} /dev/zero && \
         ! cmp -s -n {written} /dev/{disk} /dev/zero && \
         blkdiscard /dev/{disk} && cmp -n {written} /dev/{disk} /dev/zero"
    ))?;
    let after = taken_kib()?;
    assert!(
        image == "data.qcow2" || after <= LEFT_KIB,
        "{image}: {after} KiB after the discard, {before} before"
    );
    Ok(())
}

/// Debian as Debian has it: kernel, initramfs, systemd and udev as packaged, on an ordinary disk. It
/// boots to its login, reboots and powers off by its own commands, and nothing of it has failed.
/// It takes minutes two emulations deep, so it is told only when asked for.
pub fn a_stock_debian_boots_to_its_login_reboots_and_powers_off(lab: &Lab) -> Outcome {
    let [a, ..] = lab.hosts() else {
        return Err("a host is needed".into());
    };
    let disks = Disks::new(a)?;
    let root = disks.of(STOCK, "raw")?;
    let guest = Guest::start(
        a,
        Wish {
            image: STOCK,
            kernel: "vmlinuz",
            memory_mib: 320,
            dhcp: true,
            disks: vec![format!("path={root},format=raw")],
            ..Wish::default()
        },
    )?;
    let boots =
        "systemctl is-system-running --wait; cat /proc/1/comm; cat /proc/sys/kernel/random/boot_id";
    guest.log_in()?;
    let first = guest.run(boots)?;
    guest.send("systemctl reboot")?;
    guest.log_in()?;
    let second = guest.run(boots)?;
    for said in [&first, &second] {
        assert!(said.starts_with("running\nsystemd\n"), "{said}");
    }
    assert_ne!(first, second, "another boot");
    assert_eq!(guest.fact("reboots")?, 1);
    guest.send("poweroff")?;
    assert_eq!(guest.ends()?, 0, "of vmm after poweroff");
    a.run(&format!("e2fsck -fn {root}"))?;
    Ok(())
}
