//! What an operator tells the broker to do.

use super::*;

#[test]
fn orders_say_what_is_done() {
    let desk = Desk::new();
    let done = |text: &str| vec![OperatorReply::Done { text: text.to_owned() }];
    for (args, expected) in [
        (&["start", "arm64"][..], OperatorRequest::Start { pool: "arm64".to_owned() }),
        (&["drain", "b-3"], OperatorRequest::Drain { target: Target::Builder("b-3".to_owned()) }),
        (&["drain", "3"], OperatorRequest::Drain { target: Target::Builder("b-3".to_owned()) }),
        (&["drain", "--all"], OperatorRequest::Drain { target: Target::All }),
        (&["stop", "b-3"], OperatorRequest::Stop { target: Target::Builder("b-3".to_owned()) }),
        (&["stop", "--all"], OperatorRequest::Stop { target: Target::All }),
    ] {
        let (run, request) = desk.ask(args, done("Draining builder `b-3`: 2 builds left."));
        assert_eq!(request, expected);
        assert_eq!(run.text(), "exit 0\n--- stdout\nDraining builder `b-3`: 2 builds left.\n");
    }
}

#[test]
fn an_order_that_cannot_be_carried_out_says_why() {
    let failed = OperatorReply::Failed {
        reason: "there is no pool `arm`".to_owned(),
        hint: Some("there are `x86` and `arm64`".to_owned()),
    };
    insta::assert_snapshot!(Desk::new().ask(&["start", "arm"], vec![failed]).0.text(), @r"
    exit 1
    --- stderr
    error: there is no pool `arm`
    hint: there are `x86` and `arm64`
    ");
}

#[test]
fn an_order_without_a_target_or_with_two_is_wrong_usage() {
    let desk = Desk::new();
    for args in [&["drain"][..], &["stop", "b-1", "--all"], &["drain", "x86"], &["frobnicate"], &[]] {
        assert_eq!(desk.run(args).code, 2, "{args:?}");
    }
    insta::assert_snapshot!(desk.run(&["drain", "x86"]).text(), @r"
    exit 2
    --- stderr
    error: invalid value 'x86' for '[BUILDER]': a builder is named like `b-3`; `broker builders` lists them

    For more information, try '--help'.
    ");
}
