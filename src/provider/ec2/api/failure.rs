//! Takes an SDK error apart: what came back, if anything did, and what it means.
//!
//! Owns the way from the SDK's five kinds of error to [`ApiError`]. What a code means is in `classify`.

use std::error::Error as StdError;
use std::io;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::config::http::HttpResponse;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::operation::RequestId;

use super::classify::{self, Asked};
use super::error::{ApiError, ErrorClass, Words};

/// How much of somebody else's words is shown.
const MAX_MESSAGE: usize = 600;

/// What an SDK error says.
pub(super) fn explain<E>(error: &SdkError<E, HttpResponse>, asked: &Asked<'_>, subject: &str) -> ApiError
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let status = error.raw_response().map(|response| response.status().as_u16());
    let body = error.raw_response().and_then(|response| response.body().bytes()).unwrap_or_default();
    let mut answer = ApiError {
        class: ErrorClass::Unknown,
        action: asked.action,
        code: None,
        status,
        request_id: error.request_id().map(str::to_owned).or_else(|| request_id(body)),
        may_have_acted: false,
        words: Box::new(Words {
            subject: subject.to_owned(),
            region: asked.region.to_owned(),
            ..Words::default()
        }),
    };
    match error {
        SdkError::ServiceError(service) if service.err().code().is_some() => {
            let code = service.err().code();
            let status = status.unwrap_or_default();
            answer.class = classify::class(code, status, asked);
            answer.may_have_acted = classify::may_have_acted(code, status, answer.class);
            answer.code = code.map(str::to_owned);
            answer.words.message = readable(service.err().message().unwrap_or_default());
            answer.words.advice = classify::advice(answer.class, code, &answer.words.message, asked);
        }
        SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
            nonsense(&mut answer, status.unwrap_or_default(), body, asked);
        }
        SdkError::TimeoutError(_) => {
            answer.class = ErrorClass::Transient;
            answer.may_have_acted = true;
            answer.words.message = "no answer in time".into();
        }
        SdkError::ConstructionFailure(_) | SdkError::DispatchFailure(_) => unsent(&mut answer, error, asked),
        // The SDK may grow another kind: whatever it is, EC2 may have heard of it.
        _ => {
            answer.may_have_acted = true;
            answer.words.message = readable(&chain(error));
        }
    }
    answer
}

/// The id of a request as the body of a refusal has it; it is not always in a header.
fn request_id(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let id = text.split_once("<RequestID>")?.1.split_once("</RequestID>")?.0;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (id.len() <= 64 && id.bytes().all(is_plain)).then(|| id.to_owned())
}

/// An answer that is none of EC2's.
fn nonsense(answer: &mut ApiError, status: u16, body: &[u8], asked: &Asked<'_>) {
    answer.class = classify::class(None, status, asked);
    answer.may_have_acted = classify::may_have_acted(None, status, answer.class);
    let start = String::from_utf8_lossy(&body[..body.len().min(200)]).to_ascii_lowercase();
    let what = if start.contains("<html") || start.contains("<!doctype") {
        "an HTML page"
    } else if body.is_empty() {
        "an empty answer"
    } else {
        "an answer that is not EC2's XML"
    };
    answer.words.message = format!("HTTP status {status} with {what}");
    let is_passing = answer.class.is_repeated();
    answer.words.advice = (!is_passing).then(|| {
        "the endpoint does not speak EC2: see AWS_ENDPOINT_URL_EC2, AWS_ENDPOINT_URL and `endpoint_url` in \
             ~/.aws/config, and any proxy in between"
            .into()
    });
}

/// Nothing came back: no credentials, no way to send, or a connection that broke.
fn unsent<E>(answer: &mut ApiError, error: &SdkError<E, HttpResponse>, asked: &Asked<'_>)
where
    E: StdError + Send + Sync + 'static,
{
    if let Some(credentials) = find::<CredentialsError>(error) {
        let about = about_credentials(credentials, asked.profile);
        answer.class = about.class;
        answer.words.message = about.message;
        answer.words.advice = about.advice;
        return;
    }
    let words = chain(error);
    if matches!(error, SdkError::ConstructionFailure(_)) {
        answer.class = ErrorClass::Config;
        answer.words.message = readable(&words);
        return;
    }
    answer.class = ErrorClass::Transient;
    let refused = find::<io::Error>(error).is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused);
    let unknown_name = ["dns error", "failed to lookup address", "name resolution", "Name or service"]
        .iter()
        .any(|sign| words.contains(sign));
    answer.may_have_acted = !refused && !unknown_name;
    if unknown_name {
        answer.words.message = "the name of the endpoint cannot be resolved".into();
        answer.words.advice = Some(format!(
            "is `{}` a region, and does this machine resolve names? `aws ec2 describe-regions` lists them",
            asked.region
        ));
    } else if refused {
        answer.words.message = "the connection is refused".into();
        answer.words.advice =
            Some("nothing listens at the endpoint: see AWS_ENDPOINT_URL_EC2 and AWS_ENDPOINT_URL".into());
    } else {
        answer.words.message = readable(&words);
    }
}

/// What is wrong with credentials.
pub(super) struct AboutCredentials {
    pub(super) class: ErrorClass,
    pub(super) message: String,
    pub(super) advice: Option<String>,
}

/// What is wrong with credentials, and how to get good ones.
pub(super) fn about_credentials(error: &CredentialsError, profile: Option<&str>) -> AboutCredentials {
    let words = chain(error);
    let provide = "set AWS_PROFILE or `profile` of the pool, run `aws configure` or `aws sso login`, or set \
                   AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; a service takes them from its environment file";
    let lower = words.to_lowercase();
    let expired = lower.contains("expired") || lower.contains("sso session") || lower.contains("cached sso");
    let (class, message, advice) = match error {
        CredentialsError::ProviderTimedOut(_) => {
            (ErrorClass::Transient, "whatever gives the credentials does not answer".to_owned(), None)
        }
        _ if expired => (ErrorClass::Identity, readable(&words), Some(classify::expired_advice(profile))),
        CredentialsError::CredentialsNotLoaded(_) => match profile {
            Some(profile) => (
                ErrorClass::Identity,
                format!("profile `{profile}` has no credentials"),
                Some(provide.to_owned()),
            ),
            None => {
                (ErrorClass::Identity, "there are no AWS credentials".to_owned(), Some(provide.to_owned()))
            }
        },
        CredentialsError::InvalidConfiguration(_)
        | CredentialsError::ProviderError(_)
        | CredentialsError::Unhandled(_)
        | _ => (ErrorClass::Identity, readable(&words), Some(provide.to_owned())),
    };
    AboutCredentials { class, message, advice }
}

/// The error of this type that it comes down to.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// An error with what it comes from.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !words.contains(&more) {
            words.push_str(": ");
            words.push_str(&more);
        }
        next = error.source();
    }
    words
}

/// Somebody else's words on one line, without what only a machine can read, and not for ever.
fn readable(words: &str) -> String {
    let words = words.split("Encoded authorization failure message").next().unwrap_or_default();
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    match line.char_indices().nth(MAX_MESSAGE) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_elses_words_fit_on_one_line_and_cannot_move_the_cursor() {
        assert_eq!(readable("one\n\ttwo \u{1b}[2Jthree\r\n"), "one two [2Jthree");
        let long = readable(&"\u{2603} ".repeat(1000));
        assert!(long.ends_with("...") && long.chars().count() == MAX_MESSAGE + 3);
        assert_eq!(readable("no. Encoded authorization failure message: abc"), "no.");
    }

    #[test]
    fn only_what_looks_like_the_id_of_a_request_is_one() {
        let id = |text: &str| request_id(text.as_bytes());
        assert_eq!(id("<Response><RequestID>a-1</RequestID></Response>").as_deref(), Some("a-1"));
        for odd in ["", "<RequestID>", "<RequestID>\u{1b}</RequestID>", "<RequestID><b></RequestID>"] {
            assert_eq!(id(odd), None, "{odd}");
        }
        assert_eq!(id(&format!("<RequestID>{}</RequestID>", "a".repeat(65))), None);
    }
}
