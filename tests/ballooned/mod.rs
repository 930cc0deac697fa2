//! Whole migrations of guests that balloon and hint at free pages while they move. No page that
//! they use is lost. Pages in the balloon read as zero at the destination, cost no memory there,
//! and are ballooned there too.

mod busy;
mod destination;
mod machine;
mod peers;
mod unsent;
