//! How fast a guest at rest travels, beside what the machine can do at best in the same minute: TCP
//! of a buffer that never leaves the caches (iperf3), TCP of memory as large as the guest's into
//! memory that exists, and into memory that is made on the way, as a migration's has to be.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Instant;

use super::case::AT_REST;
use super::reference::{Warm, copy_mib_s, tcp_mib_s};
use super::{MigrateError, Mover, io_error};
use crate::stats::Sample;
use crate::table::Table;

/// What the guest has filled.
const FILLED_MIB: u64 = 1024;
const PIECE_BYTES: usize = 2 << 20;

/// One way of carrying memory, and its rates in MiB/s.
struct Row {
    name: String,
    total: Sample,
    /// Without setting up and handing over, where that is told.
    bulk: Sample,
}

impl Row {
    fn new(name: impl Into<String>) -> Row {
        Row {
            name: name.into(),
            total: Sample::default(),
            bulk: Sample::default(),
        }
    }
}

/// Each in turn, so many times.
pub fn table(
    runs: u32,
    connections: u32,
    movers: &[Mover],
    kernel: &Path,
) -> Result<String, MigrateError> {
    let mut rows: Vec<Row> = movers.iter().map(|mover| Row::new(mover.name())).collect();
    let mut made = Row::new(format!("TCP into new memory, {connections} streams"));
    let mut there = Row::new(format!("TCP into warm memory, {connections} streams"));
    let mut cached = Row::new(format!("iperf3, {connections} streams"));
    let mut copy = Row::new("memcpy, one thread");
    let mut notes = Vec::new();
    for _ in 0..runs {
        for (mover, row) in movers.iter().zip(&mut rows) {
            match mover.run(kernel, &AT_REST) {
                Ok(moved) => {
                    row.total.push(moved.sent_mib * 1000.0 / moved.total_ms);
                    row.bulk.push(moved.bulk_mib_s);
                }
                Err(error) if matches!(mover, Mover::Qemu { .. }) => {
                    notes.push(format!("\nNot counted: {error}\n"));
                }
                Err(error) => return Err(error),
            }
        }
        for (row, makes) in [(&mut made, true), (&mut there, false)] {
            row.bulk.push(
                streams_mib_s(connections as usize, makes).map_err(io_error("carry memory"))?,
            );
        }
        match tcp_mib_s(connections) {
            Ok(mib_s) => cached.bulk.push(mib_s),
            Err(why) => notes.push(format!("\nSKIPPED: iperf3: {why}\n")),
        }
        copy.bulk.push(copy_mib_s());
    }
    let (best, goal) = (made.bulk.median(), cached.bulk.median());
    rows.extend([made, there, cached, copy]);
    let mut table = Table::new(
        format!("Throughput: 1 GiB of a guest at rest, MiB/s, median of {runs} runs, in turn"),
        &[
            "what",
            "in all",
            "memory",
            "of iperf3",
            "of TCP into new memory",
        ],
    );
    for row in rows {
        let cell = |value: f64| {
            if value.is_nan() {
                "-".to_owned()
            } else {
                format!("{value:.0}")
            }
        };
        let bulk = row.bulk.median();
        let rate = if bulk.is_nan() {
            row.total.median()
        } else {
            bulk
        };
        let share = |of: f64| format!("{:.0} %", rate * 100.0 / of);
        table.row(vec![
            row.name,
            cell(row.total.median()),
            cell(bulk),
            share(goal),
            share(best),
        ]);
    }
    Ok(format!("\n{table}{}", notes.concat()))
}

/// Memory as large as the guest's goes over so many connections, in pieces as large as a
/// migration's. With `makes` it arrives where no memory exists yet; what the machine gives for
/// it is warm all the same.
fn streams_mib_s(connections: usize, makes: bool) -> io::Result<f64> {
    let from = Warm::take(FILLED_MIB)?;
    let mut to = Warm::take(FILLED_MIB)?;
    if makes {
        to.give_back()?;
    }
    let share = from.bytes().len() / connections;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let began = Instant::now();
    thread::scope(|scope| {
        let mut at_work = Vec::new();
        let parts = from
            .bytes()
            .chunks(share)
            .zip(to.bytes_mut().chunks_mut(share));
        for (from, to) in parts {
            let mut sender = TcpStream::connect(address)?;
            let mut receiver = listener.accept()?.0;
            at_work.push(scope.spawn(move || {
                let mut pieces = from.chunks(PIECE_BYTES);
                pieces.try_for_each(|piece| sender.write_all(piece))
            }));
            at_work.push(scope.spawn(move || {
                to.chunks_mut(PIECE_BYTES).try_for_each(|piece| {
                    if makes {
                        Warm::populate(piece)?;
                    }
                    receiver.read_exact(piece)
                })
            }));
        }
        let died = |_| io::Error::other("a thread has died");
        at_work
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(died)?)
    })?;
    Ok(FILLED_MIB as f64 / began.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_carried_either_way() {
        for makes in [false, true] {
            assert!(streams_mib_s(2, makes).unwrap() > 0.0);
        }
    }
}
