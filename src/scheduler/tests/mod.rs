//! Tests of the scheduler as a whole: stories with exact expectations, and properties under random events.

mod choices;
mod fixtures;
mod idle;
mod machines;
mod properties;
mod stories;
mod told;
