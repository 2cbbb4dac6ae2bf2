//! Handing a request over to the stock hook, as if we were not there: when the broker cannot be reached, or does not want
//! it, and `builders` names machines.
//!
//! Every line of it passes through us, so that its sudden death between a request and the reply is a decline for Nix
//! and not the end of the whole operation; and so that the broker is asked again for the next request.

use std::io;
use std::process::ExitCode;

use super::nix_executable::{self, NixNotFound};
use super::replies;
use super::stock_client::{StockClient, StockReply};
use crate::protocol::hook::{Lists, SettingsBlock, Try};

/// Why the stock hook cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandoverError {
    /// There is no Nix.
    #[error(transparent)]
    NoNix(#[from] NixNotFound),
    /// It does not start, or breaks off.
    #[error("ask the stock build hook")]
    Io(#[from] io::Error),
    /// It ended before it replied.
    #[error("the stock build hook ended before it replied")]
    Died,
}

/// The stock hook, which is started at the first request.
#[derive(Debug, Default)]
pub(super) struct Handover {
    client: Option<StockClient>,
}

impl Handover {
    /// Asks the stock hook. After an error or a last word it is started anew for the next request.
    pub(super) fn ask(
        &mut self,
        settings: &SettingsBlock,
        request: &Try,
        verbosity: &str,
    ) -> Result<StockReply, HandoverError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => {
                let client = StockClient::start(&nix_executable::find()?, verbosity, &[])?;
                client.feed(settings.as_bytes().to_vec());
                client
            }
        };
        client.feed(request.encode());
        let reply = client.reply(relay)?;
        match &reply {
            StockReply::Died => return Err(HandoverError::Died),
            StockReply::DeclinePermanently => {}
            StockReply::Accept { .. } | StockReply::Decline | StockReply::Postpone => {
                self.client = Some(client);
            }
        }
        Ok(reply)
    }

    /// After its accept: lets it build, and ends as it does.
    pub(super) fn finish(self, lists: &Lists) -> ExitCode {
        let Some(client) = self.client else { return ExitCode::FAILURE };
        client.feed(lists.as_bytes().to_vec());
        let status = client.finish(relay).ok().and_then(|status| status.code());
        ExitCode::from(status.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }
}

fn relay(line: &[u8]) {
    // A Nix that is gone ends us all.
    let _gone = replies::write_bytes(&[line, b"\n"].concat());
}
