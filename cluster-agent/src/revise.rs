//! Changes a document of the datastore that others may be changing too.

use shared_storage::StoreError;
use shared_storage::document::Revised;

/// How often a change starts over because somebody else's was faster.
const ATTEMPTS_MAX: u32 = 8;

/// Read, change, write; and again when somebody else was faster. `change` may see the document
/// more than once, each time as it is then. What is left as it is is not written.
pub fn revise<T: Clone + PartialEq, R, E: From<StoreError>>(
    read: impl Fn() -> Result<Revised<T>, StoreError>,
    write: impl Fn(u64, &T) -> Result<u64, StoreError>,
    change: impl Fn(&mut T) -> Result<R, E>,
) -> Result<R, E> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let read = read()?;
        let mut spec = read.spec.clone();
        let result = change(&mut spec)?;
        if spec == read.spec {
            return Ok(result);
        }
        match write(read.revision, &spec) {
            Err(StoreError::Changed { .. }) if attempt < ATTEMPTS_MAX => {}
            other => return Ok(other.map(|_| result)?),
        }
    }
}
