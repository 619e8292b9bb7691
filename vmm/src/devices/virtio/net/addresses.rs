//! The IPv4 addresses that a guest uses, learnt from its own ARP: who arrives on another host is
//! announced under them (RFC 5227 §3), too.

use std::sync::{Arc, Mutex, PoisonError};

use vmm_core::mac::Mac;

/// A guest with more addresses is announced under the latest.
pub(super) const ADDRESSES_MAX: usize = 16;

/// Bytes of an ARP packet with its Ethernet header, without padding.
pub(super) const ARP_BYTES: usize = 42;
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
const SENDER_MAC_AT: usize = 22;
const SENDER_ADDRESS_AT: usize = 28;

/// An IPv4 address.
pub(super) type Address = [u8; 4];

/// What was learnt, shared with the thread that sees the frames; the latest last.
#[derive(Debug, Clone, Default)]
pub(super) struct Addresses(Arc<Mutex<Vec<Address>>>);

impl Addresses {
    /// Learn from the first bytes of a frame that the guest with address `mac` sends.
    pub(super) fn see(&self, mac: Mac, frame: &[u8]) {
        let Some(address) = announced_by(mac, frame) else {
            return;
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.last() == Some(&address) {
            return;
        }
        known.retain(|other| *other != address);
        if known.len() == ADDRESSES_MAX {
            known.remove(0);
        }
        known.push(address);
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Address> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    /// These and no others.
    pub(super) fn set(&self, addresses: &[Address]) {
        let latest = addresses.len().saturating_sub(ADDRESSES_MAX);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *known = addresses[latest..].to_vec();
    }
}

/// The sender's address of an ARP packet that `mac` sends in its own name.
fn announced_by(mac: Mac, frame: &[u8]) -> Option<Address> {
    // Ethernet and IPv4 (RFC 826).
    const FIXED: [u8; 8] = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4];
    let is_arp = frame.len() >= ARP_BYTES && frame[12..20] == FIXED;
    if !is_arp || frame[SENDER_MAC_AT..SENDER_ADDRESS_AT] != mac.0 {
        return None;
    }
    let at = SENDER_ADDRESS_AT..SENDER_ADDRESS_AT + 4;
    let address: Address = frame[at].try_into().ok()?;
    // A probe for an address that may be taken already has none (RFC 5227 §2.1.1).
    (address != [0; 4]).then_some(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::announce::gratuitous_arp;
    use super::*;
    use crate::devices::virtio::tap::HEADER_BYTES;

    const MAC: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);

    #[test]
    fn what_the_guest_says_of_itself_is_learnt_and_the_latest_stay() {
        let addresses = Addresses::default();
        let arp = |mac, last| gratuitous_arp(mac, [10, 0, 0, last])[HEADER_BYTES..].to_vec();
        let (low, high) = (1, ADDRESSES_MAX as u8 + 1);
        for last in low..=high {
            addresses.see(MAC, &arp(MAC, last));
        }
        addresses.see(MAC, &arp(MAC, low + 1));
        addresses.see(Mac([2; 6]), &arp(MAC, 99));
        addresses.see(MAC, &gratuitous_arp(MAC, [0; 4])[HEADER_BYTES..]);
        addresses.see(MAC, &arp(MAC, 98)[..ARP_BYTES - 1]);
        let known = addresses.all();
        assert_eq!(known.len(), ADDRESSES_MAX);
        assert_eq!(
            (known[0][3], known[ADDRESSES_MAX - 1][3]),
            (low + 2, low + 1)
        );
        let other = Addresses::default();
        other.set(&known);
        assert_eq!(other.all(), known);
    }

    proptest! {
        #[test]
        fn no_frame_panics(frame: Vec<u8>) {
            Addresses::default().see(MAC, &frame);
        }
    }
}
