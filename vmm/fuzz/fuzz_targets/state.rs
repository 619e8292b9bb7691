//! Throws bytes at the decoder of machine state. What it accepts says the same once more.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::codec::{decode, encode};
use vmm::machine::MachineState;

fuzz_target!(|bytes: &[u8]| {
    let Ok(state) = decode::<MachineState>(bytes) else {
        return;
    };
    drop(state.check(1));
    let again = encode(&state).expect("what was decoded can be encoded");
    let twice: MachineState = decode(&again).expect("what was encoded can be decoded");
    assert_eq!(encode(&twice).expect("as before"), again);
});
