//! What an instance runs: from the first boot to the sign that it is ready, and what keeps it alive.
//!
//! Owns the texts that run on an instance and the reading of what they say. Starting an instance, dialing it and
//! deciding what to do with an answer is for the neighbours.
//!
//! - [`user_data`]: what it is given when it is launched. Its first act is to arm `dead-man.sh`, which ends the machine
//!   when nobody needs it any more, whatever became of the broker. That file stands alone: an image of our own carries it
//!   too.
//! - [`ready`]: how far the boot is. An open port 22 is no answer.
//! - [`beat`]: what the broker runs again and again: it renews the lease, and hears of a spot interruption.
//! - [`cache`]: a binary cache that keeps what was built, and `cache.sh`, which puts it there.
//! - [`image`]: which image there is to boot.
//!
//! Everything an instance and the broker tell each other is a file in `/run/nix-broker` there.

pub mod beat;
pub mod cache;
pub mod image;
pub mod ready;
pub mod user_data;

mod answer;

/// One word of a shell's command line, whatever is in it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_is_what_it_was_in_every_shell() {
        for text in ["", "a b", "it's", "''", "$(false) `x` \"\\\n", "-n", "\u{e4}"] {
            for shell in ["sh", "bash"] {
                let script = format!("printf %s {}", quoted(text));
                let output = std::process::Command::new(shell).args(["-c", &script]).output().unwrap();
                assert_eq!(String::from_utf8(output.stdout).unwrap(), text, "{shell}");
            }
        }
    }
}
