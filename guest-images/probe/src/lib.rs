//! What the probe guest and those who read its report agree on.
#![no_std]
