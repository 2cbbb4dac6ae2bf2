//! Tests of the scheduler as a whole: stories with exact expectations, and properties under random events.

mod chaos;
mod choices;
mod endings;
mod fixtures;
mod idle;
mod launches;
mod losses;
mod machines;
mod properties;
mod stories;
mod told;
