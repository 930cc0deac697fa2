//! Rules for the source text: imports, the places of tests, exports to C, the header, and
//! retired words.

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
mod programs;
mod retired;
