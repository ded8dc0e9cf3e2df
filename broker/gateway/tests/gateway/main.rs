//! Agents, a gateway and desktops in one process, over real sockets, with a
//! broker that only keeps books.

mod attach;
mod ending;
mod office;
mod places;
mod relay;
mod resume;
mod tokens;
