//! A run as a picture: machines as lanes, builds as bars, all runs on one scale.
//!
//! Every kind of thing differs in more than its colour: a boot is hatched, a lost attempt has a dashed frame, idle time is
//! an empty frame, and each has a tooltip in words. Bars too narrow to be seen one by one are drawn as one.

use std::fmt::Write as _;
use std::time::Duration;

use super::report::Report;
use super::timeline::{Bar, Lane, Timeline};

const WIDTH: f64 = 1200.0;
const GUTTER: f64 = 190.0;
const RIGHT: f64 = 16.0;
/// Of one slot.
const ROW: f64 = 7.0;
const LEAST_LANE: f64 = 14.0;
const GAP: f64 = 4.0;
/// Narrower bars are joined with their neighbours.
const SEEN: f64 = 0.8;
/// A bar this wide has room for its name.
const NAMED: f64 = 70.0;
const TICKS: u64 = 8;

/// The picture of these runs.
pub fn draw(runs: &[(&str, &Timeline)]) -> String {
    let longest = runs.iter().map(|(_, run)| run.closed.max(run.finished)).max().unwrap_or_default();
    let scale = Scale { per_second: (WIDTH - GUTTER - RIGHT) / longest.as_secs_f64().max(1.0) };
    let mut body = String::new();
    let mut y = 40.0;
    legend(&mut body);
    for (name, run) in runs {
        y = draw_run(&mut body, y, name, run, scale) + 24.0;
    }
    let mut picture = String::new();
    // Writing to a string cannot fail.
    let _written = write!(
        picture,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y:.0}\" \
         viewBox=\"0 0 {WIDTH} {y:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <title>Simulated builds</title>\n{STYLE}\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    );
    picture
}

const STYLE: &str = "<defs>\
<pattern id=\"boot\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
<rect width=\"6\" height=\"6\" fill=\"#fff\"/><rect width=\"2\" height=\"6\" fill=\"#888\"/></pattern></defs>\
<style>.bar{fill:#3b75af;stroke:#16344f;stroke-width:.4}.many{fill:#7ea6cc;stroke:none}\
.lost{fill:#fff;stroke:#a00;stroke-width:1;stroke-dasharray:3 2}.ready{fill:#f3f3f3;stroke:#999;stroke-width:.6}\
.boot{fill:url(#boot);stroke:#999;stroke-width:.6}.name{fill:#fff;font-size:6px}.tick{stroke:#ddd}\
.end{stroke:#000;stroke-dasharray:4 3}</style>";

#[derive(Clone, Copy)]
struct Scale {
    per_second: f64,
}

impl Scale {
    fn x(self, at: Duration) -> f64 {
        GUTTER + at.as_secs_f64() * self.per_second
    }

    fn width(self, from: Duration, to: Duration) -> f64 {
        to.saturating_sub(from).as_secs_f64() * self.per_second
    }
}

fn legend(body: &mut String) {
    let entries = [
        ("bar", "build"),
        ("many", "several short builds"),
        ("lost", "lost with its machine"),
        ("boot", "boot"),
        ("ready", "ready, nothing to do"),
    ];
    for (ix, (class, words)) in (0_u8..).zip(entries) {
        let x = GUTTER + f64::from(ix) * 165.0;
        let _written = writeln!(
            body,
            "<rect class=\"{class}\" x=\"{x:.0}\" y=\"10\" width=\"24\" height=\"10\"/>\
             <text x=\"{:.0}\" y=\"19\">{words}</text>",
            x + 30.0
        );
    }
}

/// Draws one run below `y`, and answers where it ends.
fn draw_run(body: &mut String, y: f64, name: &str, run: &Timeline, scale: Scale) -> f64 {
    let report = Report::of(run);
    let machines = if report.launches == 1 { "machine" } else { "machines" };
    let heading = format!(
        "{name}: finished after {}, {}, {} {machines}",
        clock(run.finished),
        report.cost,
        report.launches
    );
    let _written =
        writeln!(body, "<text x=\"8\" y=\"{y:.1}\" font-weight=\"bold\">{}</text>", escape(&heading));
    let top = y + 18.0;
    let mut at = top;
    let mut lanes = String::new();
    for lane in &run.lanes {
        at += draw_lane(&mut lanes, at, lane, run.closed, scale) + GAP;
    }
    let end = run.closed.max(run.finished).as_secs();
    let step = step(end);
    for tick in (0..=end / step).map(|n| Duration::from_secs(n * step)) {
        let x = scale.x(tick);
        let _written = writeln!(
            body,
            "<line class=\"tick\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"9\">{}</text>",
            top - 4.0,
            clock(tick)
        );
    }
    body.push_str(&lanes);
    let x = scale.x(run.finished);
    let _written = writeln!(
        body,
        "<line class=\"end\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{at:.1}\"><title>the last build \
         ends</title></line>"
    );
    at
}

/// Draws one machine, and answers how high it is.
fn draw_lane(body: &mut String, y: f64, lane: &Lane, closed: Duration, scale: Scale) -> f64 {
    let rows = lane.bars.iter().map(|bar| bar.slot + 1).max().unwrap_or(0);
    let height = (f64::from(rows) * ROW).max(LEAST_LANE);
    let end = lane.end(closed);
    let builder = lane.builder.map_or_else(String::new, |builder| format!("{builder} "));
    let label = [lane.pool.as_str(), lane.label.as_str()].join(" ");
    let _written = writeln!(
        body,
        "<text x=\"8\" y=\"{:.1}\">{}</text>",
        y + 11.0,
        escape(&shorten(&format!("{builder}{}", label.trim())))
    );
    let booted = lane.ready.unwrap_or(end);
    let mut area = |class: &str, from: Duration, to: Duration, words: &str| {
        if to > from {
            let _written = writeln!(
                body,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\">\
                 <title>{}</title></rect>",
                scale.x(from),
                scale.width(from, to),
                escape(words)
            );
        }
    };
    area("boot", lane.launched, booted, &format!("boot, {}", clock(booted.saturating_sub(lane.launched))));
    area("ready", booted, end, &format!("ready from {} to {}", clock(booted), clock(end)));
    for slot in 0..rows {
        draw_slot(
            body,
            y + f64::from(slot) * ROW,
            lane.bars.iter().filter(|bar| bar.slot == slot),
            end,
            scale,
        );
    }
    height
}

fn draw_slot<'a>(
    body: &mut String,
    y: f64,
    bars: impl Iterator<Item = &'a Bar>,
    end: Duration,
    scale: Scale,
) {
    // Bars of a slot come in the order of time.
    let mut heap: Option<(Duration, Duration, usize)> = None;
    for bar in bars {
        let to = bar.to.unwrap_or(end);
        let is_small = scale.width(bar.from, to) < SEEN && bar.is_good;
        match &mut heap {
            Some((_, until, count)) if is_small && scale.width(*until, bar.from) < SEEN => {
                *until = to;
                *count += 1;
            }
            _ => {
                draw_heap(body, y, heap.take(), scale);
                if is_small {
                    heap = Some((bar.from, to, 1));
                } else {
                    draw_bar(body, y, bar, to, scale);
                }
            }
        }
    }
    draw_heap(body, y, heap, scale);
}

fn draw_heap(body: &mut String, y: f64, heap: Option<(Duration, Duration, usize)>, scale: Scale) {
    let Some((from, to, count)) = heap else { return };
    let _written = writeln!(
        body,
        "<rect class=\"many\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{count} short builds\
         </title></rect>",
        scale.x(from),
        scale.width(from, to).max(0.3),
        ROW - 1.0
    );
}

fn draw_bar(body: &mut String, y: f64, bar: &Bar, to: Duration, scale: Scale) {
    let (class, words) = if bar.is_good { ("bar", "") } else { ("lost", ", lost") };
    let width = scale.width(bar.from, to);
    let title = format!("{}, {}{words}", bar.name, clock(to.saturating_sub(bar.from)));
    let _written = writeln!(
        body,
        "<rect class=\"{class}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
        scale.x(bar.from),
        width.max(0.5),
        ROW - 1.0,
        escape(&title)
    );
    if width > NAMED && bar.is_good {
        // As many characters as surely fit.
        let name: String = bar.name.chars().take((width / 4.5) as usize).collect();
        let _written = writeln!(
            body,
            "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            scale.x(bar.from) + 2.0,
            y + ROW - 2.0,
            escape(&name)
        );
    }
}

/// Between two ticks.
fn step(end: u64) -> u64 {
    let steps = [10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400];
    steps.into_iter().find(|step| end / step <= TICKS).unwrap_or_else(|| end.div_ceil(TICKS).max(1))
}

/// `0:42`, `12:05`, `3:10:00`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

fn shorten(text: &str) -> String {
    text.chars().take(30).collect()
}

/// Text as XML has it; what XML cannot have is left out.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => {}
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}
