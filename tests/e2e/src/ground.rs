//! The ground everything else stands on: the lab itself does what its faults promise.

use std::time::Duration;

use lab::host::DATASTORE;
use lab::scenario::Outcome;
use lab::{Cable, Direction, Host, Lab, eventually};

fn reaches(from: &Host, to: &Host) -> bool {
    from.run(&format!("ping -c 1 -W 3 {}", to.address)).is_ok()
}

pub fn hosts_reach_each_other(lab: &Lab) -> Outcome {
    for from in lab.hosts() {
        for to in lab.all() {
            from.run(&format!("ping -c 1 -W 10 {}", to.address))?;
        }
    }
    Ok(())
}

/// Clones of one template must not be taken for one machine.
pub fn hosts_have_their_own_identity(lab: &Lab) -> Outcome {
    let commands = [
        "hostname",
        "cat /etc/machine-id",
        "cat /proc/sys/kernel/random/boot_id",
        "cat /proc/sys/kernel/random/uuid",
        "cat /sys/class/net/br0/address",
        "cat /sys/class/net/eth1/address",
    ];
    for command in commands {
        let mut answers = lab
            .all()
            .map(|host| host.run(command))
            .collect::<lab::Result<Vec<_>>>()?;
        let hosts = answers.len();
        answers.sort();
        answers.dedup();
        assert_eq!(
            answers.len(),
            hosts,
            "`{command}` gives the same on two hosts: {answers:?}"
        );
    }
    Ok(())
}

pub fn programs_and_kvm_are_there(lab: &Lab) -> Outcome {
    for host in lab.hosts() {
        host.run(
            "test -c /dev/kvm && test -x /opt/godwit/vmm && test -x /opt/godwit/cluster-agent",
        )?;
        let said = host.exec(&["/opt/godwit/vmm", "--version"])?;
        assert_ne!(
            said.code,
            127,
            "vmm cannot be run: {}",
            String::from_utf8_lossy(&said.stderr)
        );
    }
    Ok(())
}

pub fn files_go_in_and_come_back(lab: &Lab) -> Outcome {
    let content: Vec<u8> = (0..5_000_000u32)
        .map(|number| (number.wrapping_mul(number) >> 7) as u8)
        .collect();
    let host = &lab.hosts()[0];
    host.push("/tmp/file", &content)?;
    assert!(host.pull("/tmp/file")? == content, "5 MB came back changed");
    host.run("rm /tmp/file")?;
    Ok(())
}

/// What one host has written and synced, another sees at once; and a name is created once.
pub fn the_datastore_is_coherent(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    for round in 0..5 {
        let file = format!("{DATASTORE}/coherent-{round}");
        a.run(&format!("echo {round} > {file}"))?;
        assert_eq!(b.run(&format!("cat {file}"))?, round.to_string());
        b.run(&format!("echo again > {file}.new && mv {file}.new {file}"))?;
        assert_eq!(a.run(&format!("cat {file}"))?, "again");
    }
    let winners = std::thread::scope(|scope| {
        let line = format!(
            "echo $(hostname) > {DATASTORE}/.$(hostname); ln {DATASTORE}/.$(hostname) {DATASTORE}/won"
        );
        let racers = [a, b].map(|host| {
            let line = line.clone();
            scope.spawn(move || host.run(&line).is_ok())
        });
        racers
            .into_iter()
            .filter_map(|racer| racer.join().ok())
            .filter(|&won| won)
            .count()
    });
    assert_eq!(winners, 1, "of two links with one name");
    a.run(&format!(
        "rm -f {DATASTORE}/coherent-* {DATASTORE}/won {DATASTORE}/.[ab]"
    ))?;
    Ok(())
}

/// The file system under the datastore can share blocks, and `NFSv4.2` hands that on: fencing by
/// clone rests on it.
pub fn a_file_is_cloned_on_the_server(lab: &Lab) -> Outcome {
    let host = &lab.hosts()[0];
    let file = format!("{DATASTORE}/clone");
    host.run(&format!(
        "dd if=/dev/urandom of={file} bs=64k count=16 conv=fsync 2>/dev/null"
    ))?;
    host.run(&format!(
        "cp --reflink=always {file} {file}.epoch2 && cmp {file} {file}.epoch2"
    ))?;
    host.run(&format!(
        "echo changed | dd of={file} conv=notrunc,fsync 2>/dev/null; ! cmp -s {file} {file}.epoch2"
    ))?;
    host.run(&format!("rm {file} {file}.epoch2"))?;
    Ok(())
}

pub fn a_cut_cable_separates_and_heals(lab: &Lab) -> Outcome {
    let [a, b, c] = lab.hosts() else {
        return Err("three hosts are needed".into());
    };
    a.cut(Cable::Management, Direction::Both);
    assert!(!reaches(a, b) && !reaches(b, a), "the cut host is reached");
    assert!(reaches(b, c), "the others are separated too");
    a.run(&format!("echo alive > {DATASTORE}/from-a"))?;
    assert_eq!(
        b.run(&format!("cat {DATASTORE}/from-a"))?,
        "alive",
        "the storage cable is another one"
    );
    a.heal(Cable::Management, Direction::Both);
    eventually("the healed host being reached", || {
        reaches(a, b).then_some(())
    })?;
    Ok(())
}

pub fn one_way_cuts_lose_one_way(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    // Known addresses first, so that what follows is not about name resolution.
    assert!(reaches(a, b) && reaches(b, a));
    let received = |host: &Host| host.run("cat /sys/class/net/eth0/statistics/rx_packets");
    a.cut(Cable::Management, Direction::FromHost);
    let (at_a, at_b) = (received(a)?, received(b)?);
    assert!(!reaches(b, a), "answers arrive through a cut cable");
    assert_ne!(received(a)?, at_a, "what is sent to the host must arrive");
    assert!(!reaches(a, b));
    assert_eq!(received(b)?, at_b, "nothing the host sends may arrive");
    a.heal(Cable::Management, Direction::FromHost);
    eventually("the healed host being reached", || {
        reaches(a, b).then_some(())
    })?;
    Ok(())
}

fn uptime_seconds(host: &Host) -> Result<f64, Box<dyn std::error::Error + Send + Sync>> {
    Ok(host.run("cut -d' ' -f1 /proc/uptime")?.parse()?)
}

pub fn a_frozen_host_stands_still(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    a.freeze()?;
    assert!(!reaches(b, a), "a frozen host answers");
    let late = a.exec_with(&["true"], &[], Duration::from_secs(2));
    assert!(late.is_err(), "a frozen host runs commands");
    a.thaw()?;
    eventually("the thawed host answering", || reaches(b, a).then_some(()))?;
    Ok(())
}

/// With its clock stopped the host misses the time that the others live through.
pub fn a_stopped_clock_loses_time(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    let (a_before, b_before) = (uptime_seconds(a)?, uptime_seconds(b)?);
    a.stop_clock()?;
    let gone = |b_now: f64| b_now - b_before >= 5.0;
    eventually("five seconds passing on the other host", || {
        uptime_seconds(b).ok().filter(|&now| gone(now))
    })?;
    a.start_clock()?;
    let (a_after, b_after) = (uptime_seconds(a)?, uptime_seconds(b)?);
    let missed = (b_after - b_before) - (a_after - a_before);
    assert!(missed > 2.0, "the stopped clock missed only {missed:.1} s");
    Ok(())
}

pub fn a_power_cut_leaves_an_empty_host(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    let boot = "cat /proc/sys/kernel/random/boot_id";
    a.run("echo volatile > /tmp/mark; echo lasting | dd of=/dev/vdb conv=fsync 2>/dev/null")?;
    let before = a.run(boot)?;
    a.power_off()?;
    assert!(!a.is_on() && a.run("true").is_err());
    assert!(!reaches(b, a), "a host without power answers");
    a.power_on()?;
    assert_eq!(a.run("test -e /tmp/mark || echo gone")?, "gone");
    assert_eq!(a.run("head -c 7 /dev/vdb")?, "lasting");
    assert_ne!(a.run(boot)?, before, "another life has another boot id");
    a.mount_datastore()?;
    eventually("the host being reached again", || {
        reaches(b, a).then_some(())
    })?;
    Ok(())
}

/// The storage server forgets a dead client after its lease time, here 10 s.
pub fn a_dead_hosts_lock_becomes_free(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    let file = format!("{DATASTORE}/locked");
    a.spawn("locker", &format!("exec 9<>{file}; flock -x 9; sleep 1000"))?;
    // flock(1) says 1 when another holds the lock.
    let code = || {
        b.exec(&["sh", "-c", &format!("flock -n 9 9<>{file}")])
            .map_or(-1, |output| output.code)
    };
    let taken = || code() == 0;
    eventually("the lock being held", || (code() == 1).then_some(()))?;
    a.power_off()?;
    eventually("the dead host's lock becoming free", || {
        taken().then_some(())
    })?;
    a.power_on()?;
    a.mount_datastore()?;
    a.run(&format!("rm {file}"))?;
    Ok(())
}

pub fn the_datastore_survives_a_power_cut_of_the_storage(lab: &Lab) -> Outcome {
    let [a, b, ..] = lab.hosts() else {
        return Err("two hosts are needed".into());
    };
    let file = format!("{DATASTORE}/lasting");
    a.run(&format!("echo before > {file}; sync {file}"))?;
    lab.storage().restart()?;
    a.run(&format!("echo after >> {file}; sync {file}"))?;
    assert_eq!(b.run(&format!("cat {file}"))?, "before\nafter");
    b.run(&format!("rm {file}"))?;
    Ok(())
}
