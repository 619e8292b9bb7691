//! May these moves be carried out as things are now, without what the plan had before them?

use alloc::format;
use alloc::string::String;

use crate::balance::Move;
use crate::model::Cluster;
use crate::placement::usage;
use crate::rules::violations;

/// Each move, one after the other, finds its guest where it should be and room on a target
/// that receives guests, and no more hard rules are broken afterwards than before.
pub fn check(cluster: &Cluster, moves: &[Move]) -> Result<(), String> {
    let mut after = cluster.clone();
    for one in moves {
        let used = usage(&after);
        let (Some(guest), Some(target)) =
            (after.guests.get_mut(&one.guest), after.hosts.get(&one.to))
        else {
            return Err(format!("{} or {} is gone", one.guest, one.to));
        };
        if guest.host.as_ref() != Some(&one.from) {
            return Err(format!("{} is not on {} any more", one.guest, one.from));
        }
        if !target.mode.receives() {
            return Err(format!("{} receives no guests now", one.to));
        }
        let taken = used.get(&one.to).copied().unwrap_or_default().reserved;
        let free = target.capacity.minus(taken);
        if !guest.reservation.fits(free) {
            return Err(format!("{} has only {free} free", one.to));
        }
        guest.host = Some(one.to.clone());
    }
    let hard = |cluster: &Cluster| {
        let broken = violations(cluster);
        broken.iter().filter(|(_, broken)| broken.hard).count()
    };
    if hard(&after) > hard(cluster) {
        return Err("it would break a rule".into());
    }
    Ok(())
}
