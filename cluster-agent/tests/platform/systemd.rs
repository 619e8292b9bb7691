//! What systemd hears of an agent's life.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::agent::Agent;

const HEARD_WITHIN: Duration = Duration::from_mins(2);

fn next(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).expect("the agent says nothing");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn ready_then_fed_then_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(HEARD_WITHIN)).unwrap();
    let environment = [
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "400000"),
    ];
    let Some(mut agent) = Agent::start(&environment) else {
        return;
    };
    // The loop runs before the sockets answer, so it may be heard of first.
    let mut heard = next(&socket);
    while heard == "WATCHDOG=1\n" {
        heard = next(&socket);
    }
    assert!(heard.starts_with("READY=1\nSTATUS=a answers at"), "{heard}");
    for _ in 0..3 {
        assert_eq!(next(&socket), "WATCHDOG=1\n");
    }
    agent.stop();
    let mut heard = next(&socket);
    while heard == "WATCHDOG=1\n" {
        heard = next(&socket);
    }
    assert!(heard.starts_with("STOPPING=1"), "{heard}");
}
