//! Somebody who asks a Debian guest all the time how far its counter is, and compares what the
//! guest said with what its disk holds in the end.

use std::collections::BTreeMap;

use lab::{Host, PATIENCE, eventually_within};

use crate::web::Page;

/// Answers that show that a guest goes on counting.
const SOME_NUMBERS: u64 = 6;

/// A loop on a host that notes every answer of one guest.
pub struct Witness<'lab> {
    at: &'lab Host,
    address: String,
    log: String,
    group: u32,
}

/// The numbers that one boot of a guest's kernel left on its disk.
#[derive(Debug)]
struct Run {
    boot: String,
    last: u64,
}

impl<'lab> Witness<'lab> {
    /// Begins to ask the guest at `address` from a host that outlives the story.
    pub fn begin(at: &'lab Host, guest: &str, address: &str) -> lab::Result<Self> {
        let name = format!("witness-{guest}");
        at.run(&format!("rm -f /var/log/{name}.log"))?;
        let group = at.spawn(
            &name,
            &format!("while :; do timeout 3 wget -q -O - http://{address}/; sleep 0.2; done"),
        )?;
        Ok(Self {
            at,
            address: address.to_owned(),
            log: format!("/var/log/{name}.log"),
            group,
        })
    }

    /// Waits until the guest has counted on, whichever boot of it.
    pub fn sees_it_count(&self) -> lab::Result<Page> {
        let from = Page::await_one(self.at, &self.address, |_| true)?;
        Page::await_one(self.at, &self.address, |page| {
            page.counter >= from.counter + SOME_NUMBERS
        })
    }

    /// Every number that the guest ever called safe lies on its disk under the boot that said so,
    /// none is damaged or missing, and no two boots took turns.
    pub fn finds_every_number(&self) -> lab::Result<()> {
        // Before its disk is read: a guest that runs counts on meanwhile.
        let heard = self.heard()?;
        let url = format!("http://{}/cgi-bin/counter", self.address);
        let history = eventually_within(3 * PATIENCE, "the guest reading its disk", || {
            self.at.http(&url).ok()
        })?;
        let runs = history
            .lines()
            .map(|line| read_run(line).ok_or_else(|| format!("the disk's numbers: {line}")))
            .collect::<Result<Vec<_>, _>>()?;
        if heard.is_empty() {
            return Err(format!("no answer of {} was noted", self.address).into());
        }
        for (boot, counter) in heard {
            let mut its = runs.iter().filter(|run| run.boot == boot);
            match (its.next(), its.next()) {
                (Some(run), None) if run.last >= counter => {}
                found => {
                    let said = format!("boot {boot} had {counter} safe on its disk, and there is");
                    return Err(format!("{said} {found:?} among {runs:?}").into());
                }
            }
        }
        Ok(())
    }

    /// The largest number that each boot called safe. One that was still being written when its
    /// answer broke off has no boot behind it and is passed over.
    fn heard(&self) -> lab::Result<BTreeMap<String, u64>> {
        let text = self.at.run(&format!("cat {}", self.log))?;
        let mut heard = BTreeMap::new();
        let mut counter = None;
        for line in text.lines() {
            match line.split_once('=') {
                Some(("counter", number)) => counter = number.parse().ok(),
                Some(("boot", boot)) => {
                    if let Some(number) = counter.take() {
                        heard.insert(boot.to_owned(), number);
                    }
                }
                _ => {}
            }
        }
        Ok(heard)
    }
}

impl Drop for Witness<'_> {
    fn drop(&mut self) {
        // Its host may be without power if the story went wrong.
        let _ = self.at.run(&format!("kill -9 -{}; true", self.group));
    }
}

fn read_run(line: &str) -> Option<Run> {
    let mut words = line.strip_prefix("run=")?.split(' ');
    let boot = words.next()?.to_owned();
    let last = words.nth(1)?.parse().ok()?;
    Some(Run { boot, last })
}
