//! Services as drivers use them, and as none would.

mod conversation;
mod hosted;
