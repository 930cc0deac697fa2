//! Rules that the source text keeps: who imports whom, what is exported to C, and the header.

mod exports;
mod graph;
mod header;
mod imports;
mod layers;
