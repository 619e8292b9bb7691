//! Emulated hosts with real kernels, storage and cables.
