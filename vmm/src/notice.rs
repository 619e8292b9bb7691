//! What the parts of a machine tell whoever drives it.

/// Something that the driving loop has to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The guest switched itself off, or an operator pulled its plug.
    Off,
    /// The guest wants to be reset, or an operator does.
    Reset,
    /// The guest's kernel has panicked.
    Panicked,
    /// A processor gave up (triple fault).
    Crashed,
    /// This side cannot run the guest any further; one line says why.
    Failed(String),
    /// The guest runs on another host now.
    Moved,
    /// The right to run the guest is gone for good; one line says where to.
    LeaseLost(String),
}
