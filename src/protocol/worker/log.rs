//! The frames a server sends between a request and its reply, and the error that can stand in the reply's place.
//!
//! Owns their bytes. What a build printed is told apart from the rest; what becomes of it is the sink's business.

use std::future::Future;

use tokio::io::AsyncBufRead;

use super::error::ProtocolError;
use crate::protocol::wire::{MAX_TEXT, MAX_WORD, WireError, WireReader, WireWriter};

const NEXT: u64 = 0x6f6c_6d67;
const LAST: u64 = 0x616c_7473;
pub(crate) const ERROR: u64 = 0x6378_7470;
const START_ACTIVITY: u64 = 0x5354_5254;
const STOP_ACTIVITY: u64 = 0x5354_4f50;
const RESULT: u64 = 0x5253_4c54;

const RESULT_LOG_LINE: u64 = 101;
const RESULT_PHASE: u64 = 104;
const FIELD_INT: u64 = 0;
const FIELD_STRING: u64 = 1;

const MAX_FIELDS: u64 = 1 << 10;
const MAX_TRACES: u64 = 1 << 12;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// A line a build printed, without its line end.
    Line {
        /// The build.
        activity: u64,
        /// The bytes.
        text: Vec<u8>,
    },
    /// A build entered a phase.
    Phase {
        /// The build.
        activity: u64,
        /// Such as `buildPhase`.
        phase: String,
    },
    /// A message of the daemon for people, with its line end.
    Message {
        /// The bytes; may have terminal colours.
        text: Vec<u8>,
    },
    /// Something begins.
    Start {
        /// What later frames call it.
        id: u64,
        /// How important it is: 0 to 7.
        level: u64,
        /// What it is: 100 copying a path, 105 a build, 108 a substitution, ...
        kind: u64,
        /// A sentence for people.
        text: Vec<u8>,
        /// What the kind prescribes.
        fields: Vec<Field>,
        /// What it is a part of; 0 is nothing.
        parent: u64,
    },
    /// Something ends.
    Stop {
        /// What.
        id: u64,
    },
    /// Something came of an activity: progress, for example.
    Result {
        /// The activity.
        id: u64,
        /// 105 progress, 106 what is expected, ...
        kind: u64,
        /// What the kind prescribes.
        fields: Vec<Field>,
    },
}

/// A detail of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// A number.
    Int(u64),
    /// Bytes.
    String(Vec<u8>),
}

/// Takes the events of an operation as they arrive. While the future is pending, nothing more is read: that is how a
/// slow sink holds a fast build back.
pub trait LogSink: Send {
    /// Takes one.
    fn event(&mut self, event: LogEvent) -> impl Future<Output = ()> + Send;
}

/// Takes no interest.
impl LogSink for () {
    async fn event(&mut self, _: LogEvent) {}
}

/// Keeps them all.
impl LogSink for Vec<LogEvent> {
    async fn event(&mut self, event: LogEvent) {
        self.push(event);
    }
}

impl<T: LogSink> LogSink for &mut T {
    async fn event(&mut self, event: LogEvent) {
        (**self).event(event).await;
    }
}

/// An operation the server carried out without success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// How bad it is; 0 is an error.
    pub level: u64,
    /// What happened; may have terminal colours.
    pub message: String,
    /// On the way to what.
    pub traces: Vec<String>,
}

impl RemoteError {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { level: 0, message: message.into(), traces: Vec::new() }
    }

    /// Reads what follows the frame's number.
    pub(crate) async fn read<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<Self, WireError> {
        reader.begin_message();
        reader.bytes("type of an error", MAX_WORD).await?;
        let level = reader.u64("level of an error").await?;
        reader.bytes("name of an error", MAX_WORD).await?;
        let message = reader.text("message of an error", MAX_TEXT).await?;
        read_no_position(reader).await?;
        let mut traces = Vec::new();
        for _ in 0..reader.count("number of traces of an error", MAX_TRACES).await? {
            read_no_position(reader).await?;
            traces.push(reader.text("trace of an error", MAX_TEXT).await?);
        }
        Ok(Self { level, message, traces })
    }

    /// Writes the whole frame.
    pub(crate) fn write(&self, out: &mut WireWriter) {
        const NO_POSITION: u64 = 0;
        out.u64(ERROR);
        out.bytes("Error");
        out.u64(self.level);
        out.bytes("Error");
        out.bytes(&self.message);
        out.u64(NO_POSITION);
        out.u64(self.traces.len() as u64);
        for trace in &self.traces {
            out.u64(NO_POSITION);
            out.bytes(trace);
        }
    }
}

/// Positions in source files have never been sent, so there is no form in which they could be read.
async fn read_no_position<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<(), WireError> {
    match reader.u64("position of an error").await? {
        0 => Ok(()),
        other => Err(WireError::invalid("position of an error", other.to_string())),
    }
}

/// Reads frames up to the reply (`Ok`) or the error in its place.
pub(crate) async fn read_frames<R: AsyncBufRead + Unpin + Send>(
    reader: &mut WireReader<R>,
    sink: &mut impl LogSink,
) -> Result<Result<(), RemoteError>, ProtocolError> {
    loop {
        reader.begin_message();
        let kind = reader.u64("kind of a frame").await?;
        match kind {
            LAST => {
                reader.begin_message();
                return Ok(Ok(()));
            }
            ERROR => return Ok(Err(RemoteError::read(reader).await?)),
            NEXT | START_ACTIVITY | STOP_ACTIVITY | RESULT => {
                let event = read_event(reader, kind).await?;
                sink.event(event).await;
            }
            other => return Err(ProtocolError::UnexpectedFrame(other)),
        }
    }
}

async fn read_event<R: AsyncBufRead + Unpin>(
    reader: &mut WireReader<R>,
    kind: u64,
) -> Result<LogEvent, WireError> {
    match kind {
        NEXT => Ok(LogEvent::Message { text: reader.bytes("message", MAX_TEXT).await? }),
        START_ACTIVITY => Ok(LogEvent::Start {
            id: reader.u64("id of an activity").await?,
            level: reader.u64("level of an activity").await?,
            kind: reader.u64("kind of an activity").await?,
            text: reader.bytes("text of an activity", MAX_TEXT).await?,
            fields: read_fields(reader).await?,
            parent: reader.u64("parent of an activity").await?,
        }),
        STOP_ACTIVITY => Ok(LogEvent::Stop { id: reader.u64("id of an activity").await? }),
        _ => {
            let id = reader.u64("id of an activity").await?;
            let kind = reader.u64("kind of a result").await?;
            Ok(result_event(id, kind, read_fields(reader).await?))
        }
    }
}

fn result_event(id: u64, kind: u64, fields: Vec<Field>) -> LogEvent {
    match (kind, <[Field; 1]>::try_from(fields)) {
        (RESULT_LOG_LINE, Ok([Field::String(text)])) => LogEvent::Line { activity: id, text },
        (RESULT_PHASE, Ok([Field::String(phase)])) => match String::from_utf8(phase) {
            Ok(phase) => LogEvent::Phase { activity: id, phase },
            Err(phase) => LogEvent::Result { id, kind, fields: vec![Field::String(phase.into_bytes())] },
        },
        (_, Ok(field)) => LogEvent::Result { id, kind, fields: field.into() },
        (_, Err(fields)) => LogEvent::Result { id, kind, fields },
    }
}

async fn read_fields<R: AsyncBufRead + Unpin>(reader: &mut WireReader<R>) -> Result<Vec<Field>, WireError> {
    let mut fields = Vec::new();
    for _ in 0..reader.count("number of fields", MAX_FIELDS).await? {
        fields.push(match reader.u64("kind of a field").await? {
            FIELD_INT => Field::Int(reader.u64("field").await?),
            FIELD_STRING => Field::String(reader.bytes("field", MAX_TEXT).await?),
            other => return Err(WireError::invalid("kind of a field", other.to_string())),
        });
    }
    Ok(fields)
}

/// Writes the frame that says: the reply follows.
pub(crate) fn write_last(out: &mut WireWriter) {
    out.u64(LAST);
}

impl LogEvent {
    /// Writes the frame.
    pub(crate) fn write(&self, out: &mut WireWriter) {
        match self {
            Self::Line { activity, text } => write_result(out, *activity, RESULT_LOG_LINE, [text]),
            Self::Phase { activity, phase } => write_result(out, *activity, RESULT_PHASE, [phase]),
            Self::Message { text } => {
                out.u64(NEXT);
                out.bytes(text);
            }
            Self::Start { id, level, kind, text, fields, parent } => {
                out.u64(START_ACTIVITY);
                out.u64(*id);
                out.u64(*level);
                out.u64(*kind);
                out.bytes(text);
                write_fields(out, fields);
                out.u64(*parent);
            }
            Self::Stop { id } => {
                out.u64(STOP_ACTIVITY);
                out.u64(*id);
            }
            Self::Result { id, kind, fields } => {
                out.u64(RESULT);
                out.u64(*id);
                out.u64(*kind);
                write_fields(out, fields);
            }
        }
    }
}

fn write_result(out: &mut WireWriter, activity: u64, kind: u64, [text]: [impl AsRef<[u8]>; 1]) {
    out.u64(RESULT);
    out.u64(activity);
    out.u64(kind);
    out.u64(1);
    out.u64(FIELD_STRING);
    out.bytes(text);
}

fn write_fields(out: &mut WireWriter, fields: &[Field]) {
    out.u64(fields.len() as u64);
    for field in fields {
        match field {
            Field::Int(value) => {
                out.u64(FIELD_INT);
                out.u64(*value);
            }
            Field::String(value) => {
                out.u64(FIELD_STRING);
                out.bytes(value);
            }
        }
    }
}
