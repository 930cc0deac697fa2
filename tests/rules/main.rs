//! Rules that the source text keeps: who imports whom, where unit tests stand, what is exported to C, the
//! header, and which words are retired.

mod api;
#[cfg(feature = "capi")]
#[path = "../../header/assemble.rs"]
mod assemble;
#[cfg(feature = "capi")]
mod exports;
mod graph;
#[cfg(feature = "capi")]
mod header;
mod imports;
mod layers;
mod names;
mod retired;
