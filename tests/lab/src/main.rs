//! The `lab` command.
fn main() {
    let started = lab::Lab::start(&lab::Settings {
        hosts: 2,
        ..lab::Settings::default()
    });
    match started {
        Ok(lab) => {
            println!("{:?}", lab.started());
            for host in lab.hosts() {
                println!("{:?}", host.run("hostname; ls -l /dev/kvm; ls /opt/godwit; mount | tail -2; cat /proc/sys/kernel/random/boot_id; date; ping -c 1 10.0.0.2; free -m"));
            }
        }
        Err(error) => println!("{error}"),
    }
}
