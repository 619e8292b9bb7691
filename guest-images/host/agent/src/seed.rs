//! Fresh randomness for a clone: all clones of one template start with the same random state.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

/// `RNDADDTOENTCNT`, `_IOW('R', 0x01, int)` of linux/random.h.
const ADD_TO_ENTROPY_COUNT: libc::c_ulong = 0x4004_5201;
/// `RNDRESEEDCRNG`, `_IO('R', 0x07)` of linux/random.h.
const RESEED: libc::c_ulong = 0x5207;
/// What is read from standard input at most.
const SEED_LIMIT_BYTES: u64 = 4096;

/// Stirs standard input into the kernel's pool and makes it start a new stream.
pub fn stir() -> Result<(), Box<dyn Error>> {
    let mut seed = Vec::new();
    std::io::stdin()
        .take(SEED_LIMIT_BYTES)
        .read_to_end(&mut seed)?;
    let mut random = File::options()
        .read(true)
        .write(true)
        .open("/dev/urandom")?;
    random.write_all(&seed)?;
    let bits: libc::c_int = i32::try_from(seed.len())? * 8;
    // SAFETY: the descriptor is open and `bits` outlives the call, which only reads an int.
    if unsafe { libc::ioctl(random.as_raw_fd(), ADD_TO_ENTROPY_COUNT, &raw const bits) } != 0 {
        return Err(format!(
            "cannot credit the seed: {}",
            std::io::Error::last_os_error()
        )
        .into());
    }
    // SAFETY: the descriptor is open; this request takes no argument.
    if unsafe { libc::ioctl(random.as_raw_fd(), RESEED) } != 0 {
        return Err(format!("cannot reseed: {}", std::io::Error::last_os_error()).into());
    }
    Ok(())
}
