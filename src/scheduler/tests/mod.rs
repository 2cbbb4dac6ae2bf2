//! Tests of the scheduler as a whole: stories with exact expectations, and properties under random events.

mod choices;
mod fixtures;
mod machines;
mod properties;
mod stories;
