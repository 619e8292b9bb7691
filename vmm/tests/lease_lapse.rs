//! A whole `vmm` under a lease: when its storage falls silent its processors stand still, when it
//! is back they go on, and when another host has the guest the process ends and says so.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use ground::{Ground, Kind};
use shared_storage::lease::{Grant, HeldLease};
use shared_storage::{ClusterFile, Datastore, Keeper, LocalHost, Role, StoreError, Watcher};
use storage_core::hold::Hold;
use storage_core::timing::Timing;
use vmm::cli::ctl::request;
use vmm_core::control::{Event, Happening, Info};
use vmm_core::lifecycle::{Ending, State};

/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// A datastore with a guest, on whatever file system.
struct World {
    dir: tempfile::TempDir,
    store: Datastore,
}

impl World {
    /// Nothing, said loudly, where there is no KVM.
    fn on(root: &Path) -> Option<Self> {
        if let Err(error) = vmm::kvm::open() {
            ground::skip(error);
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("probe"), probe::IMAGE).unwrap();
        let cluster = ClusterFile::new("test", Timing::default());
        let store = Datastore::create(root, &cluster).unwrap();
        let spec = toml::Table::new();
        store.create_guest("web1", &spec, |_| Ok(())).unwrap();
        Some(Self { dir, store })
    }

    fn keeper(&self, host: &str) -> Keeper {
        let host = LocalHost::new(host, &self.dir.path().join(host)).unwrap();
        let keeper = Keeper::start(&self.store, &host, Role::Agent).unwrap();
        keeper.wait_live(PATIENCE).unwrap();
        keeper
    }

    /// What host a's agent does before it dies: claim the lease, start the VMM.
    fn run(&self) -> Vmm {
        let agent = self.keeper("a");
        let files = self.store.guest("web1").unwrap().lease();
        let seen = files.look().unwrap();
        drop(HeldLease::claim(&agent, files, &seen, None, None, PATIENCE).unwrap());
        let socket = self.dir.path().join("api.sock");
        let mut command = self.command();
        command.arg("--api-socket").arg(&socket);
        let process = command.stderr(Stdio::piped()).spawn().unwrap();
        let give_up = Instant::now() + PATIENCE;
        while request(&socket, "GET", "/v1/info", None).is_err() {
            assert!(Instant::now() < give_up, "the VMM does not answer");
            thread::sleep(POLL);
        }
        Vmm {
            events: listen(&socket),
            process,
            socket,
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.args(["run", "--memory", "32", "--console", "off", "--cmdline"]);
        command.args(["cpus=1", "--guest", "web1", "--host", "a", "--datastore"]);
        command.arg(self.store.root());
        command.arg("--run-dir").arg(self.dir.path().join("a"));
        command.arg("--kernel").arg(self.dir.path().join("probe"));
        command
    }

    /// Until when host a may act: a word of the page that its processes share.
    fn deadline_us(&self) -> u64 {
        let cluster = u128::from_be_bytes(self.store.cluster().id);
        let page = self.dir.path().join(format!("a/{cluster:032x}/a.page"));
        let word = fs::read(page).unwrap()[64..72].try_into().unwrap();
        Hold::from_word(u64::from_le_bytes(word)).deadline_us()
    }

    fn last_grant(&self) -> (u64, Grant) {
        let last = self.store.guest("web1").unwrap().lease().last().unwrap();
        last.map(|last| (last.epoch, last.grant)).unwrap()
    }
}

/// The process, and what it says of itself.
struct Vmm {
    process: Child,
    socket: PathBuf,
    events: Receiver<Event>,
}

fn listen(socket: &Path) -> Receiver<Event> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.arg("ctl").arg("--api-socket").arg(socket);
    let mut listener = command
        .arg("events")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (tell, events) = channel();
    thread::spawn(move || {
        let lines = BufReader::new(listener.stdout.take().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            if tell.send(serde_json::from_str(&line).unwrap()).is_err() {
                break;
            }
        }
        let _ = listener.kill();
        let _ = listener.wait();
    });
    events
}

impl Vmm {
    fn until(&self, wanted: &Happening) -> Event {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let left = give_up.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) if event.what == *wanted => return event,
                Ok(_) => {}
                Err(error) => panic!("waited for {wanted:?}: {error}"),
            }
        }
    }

    /// Ends it; gives what it wrote on its standard error.
    fn last_words(mut self) -> String {
        self.process.kill().unwrap();
        let mut said = String::new();
        let stderr = self.process.stderr.take();
        stderr.unwrap().read_to_string(&mut said).unwrap();
        said
    }

    fn state(&self) -> State {
        let mut answer = request(&self.socket, "GET", "/v1/info", None).unwrap();
        let info: Info = serde_json::from_slice(&answer.body().unwrap()).unwrap();
        info.state
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn processors_stand_still_while_the_storage_is_silent() {
    let ground = match Ground::in_file(Kind::Ext4) {
        Ok(ground) => ground,
        Err(why) => return ground::skip(why),
    };
    let Some(world) = World::on(&ground.root()) else {
        return;
    };
    let vmm = world.run();
    vmm.until(&Happening::State(State::Running));
    let mut late_us = Vec::new();
    for epoch in [2, 3] {
        ground.freeze().unwrap();
        let stood_still = vmm.until(&Happening::LeaseSuspended);
        late_us.push(stood_still.boottime_us - world.deadline_us());
        assert_eq!(vmm.state(), State::Paused);
        ground.thaw().unwrap();
        vmm.until(&Happening::LeaseResumed);
        assert_eq!(vmm.state(), State::Running);
        assert_eq!(world.last_grant(), (epoch, Grant::Renewed));
    }
    println!("stood still {late_us:?} us after the deadline");
    // Others count on `stop_ms`: whether it was kept must be known.
    let stop_us = world.store.timing().stop_us();
    let late = late_us.iter().any(|late_us| *late_us > stop_us);
    let said = vmm.last_words();
    assert_eq!(said.contains("stood still later"), late, "{said}");
}

#[test]
fn a_process_that_wakes_up_too_late_says_who_has_its_guest_and_ends() {
    let root = tempfile::tempdir().unwrap();
    let Some(world) = World::on(root.path()) else {
        return;
    };
    let mut vmm = world.run();
    let other = world.keeper("b");
    let mut watcher = Watcher::new(&world.store, &other);
    watcher.watch("a").unwrap();
    vmm.signal("STOP");
    let seen = world.store.guest("web1").unwrap().lease().look().unwrap();
    let give_up = Instant::now() + PATIENCE;
    let taken = loop {
        let files = world.store.guest("web1").unwrap().lease();
        match HeldLease::claim(&other, files, &seen, Some(&watcher), None, PATIENCE) {
            Err(StoreError::Held { .. }) if Instant::now() < give_up => thread::sleep(POLL),
            taken => break taken.unwrap(),
        }
    };
    assert_eq!(world.last_grant(), (2, Grant::TakenOver));
    vmm.signal("CONT");
    let code = vmm.process.wait().unwrap().code();
    assert_eq!(code, Some(i32::from(Ending::LeaseLost.code())));
    let mut said = String::new();
    let stderr = vmm.process.stderr.take();
    stderr.unwrap().read_to_string(&mut said).unwrap();
    assert!(
        said.contains("(epoch 2) went to b: it must not run here"),
        "{said}"
    );
    drop(taken);
}

/// A takeover would not move them, and late writes of this host would reach them.
#[test]
fn a_disk_that_could_not_be_fenced_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let Some(world) = World::on(root.path()) else {
        return;
    };
    for (disk, refused) in [
        ("guests/web1/disk0.vmdk", true),
        ("images/shared.raw", true),
        ("images/shared.raw,readonly=on", false),
        ("guests/web1/disk0.img", false),
    ] {
        let mut command = world.command();
        let ended = command.arg("--disk").arg(format!("path={disk}")).output();
        let said = String::from_utf8(ended.unwrap().stderr).unwrap();
        // Nobody claimed the lease: what is not refused for its disk ends for that.
        assert_eq!(said.contains("would not be fenced"), refused, "{said}");
        assert_eq!(said.contains("there is no"), !refused, "{said}");
    }
}
