//! stub
fn main() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.split_first() {
        Some((word, rest)) if word == nix_broker::provider::local::machine::SUBCOMMAND => {
            nix_broker::provider::local::machine::main(rest)
        }
        _ => std::process::ExitCode::FAILURE,
    }
}
