//! Tests of the scheduler as a whole: stories with exact expectations, and properties under random events.

mod fixtures;
mod properties;
mod stories;
