//! `vireo vm screenshot` and `vireo vm type`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use vireo_worker::control::{Answer, Request, TEXT_MAX, ask};

/// Arguments of `vireo vm screenshot`.
#[derive(Args)]
pub struct ScreenshotArgs {
    /// The socket that the machine was started with (`vireo run --control`).
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// Where to write it; one that is there is overwritten.
    #[arg(value_name = "FILE.png")]
    file: PathBuf,
}

/// Arguments of `vireo vm type`.
#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct TypeArgs {
    /// The socket that the machine was started with (`vireo run --control`).
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// What to type, as on a US keyboard: \\n is Enter, \\t Tab, \\e Escape, \\\\ a backslash.
    #[arg(group = "what", allow_hyphen_values = true)]
    text: Option<String>,
    /// Keys to press together, by name: enter, f2, ctrl-alt-del. After the text; may be given often.
    #[arg(long = "key", value_name = "KEYS", group = "what")]
    keys: Vec<String>,
}

/// Runs `vireo vm screenshot`.
pub fn shoot(args: &ScreenshotArgs) -> ExitCode {
    finish(take(&args.control, &args.file))
}

fn take(socket: &Path, file: &Path) -> Result<(), String> {
    let answer = ask(socket, &Request::Screenshot).map_err(|e| e.to_string())?;
    let Answer::Screen { png } = answer else { return Err("the machine sent no screen".into()) };
    let png = STANDARD.decode(png).map_err(|e| format!("the machine sent a damaged screen: {e}"))?;
    std::fs::write(file, png).map_err(|e| format!("{}: {e}", file.display()))
}

/// Runs `vireo vm type`.
pub fn type_keys(args: &TypeArgs) -> ExitCode {
    finish(requests(args).and_then(|requests| {
        requests.iter().try_for_each(|r| ask(&args.control, r).map(|_| ()).map_err(|e| e.to_string()))
    }))
}

fn requests(args: &TypeArgs) -> Result<Vec<Request>, String> {
    let text: Vec<char> = unescape(args.text.as_deref().unwrap_or_default())?.chars().collect();
    let parts = text.chunks(TEXT_MAX).map(|part| Request::Type { text: part.iter().collect() });
    let keys = args.keys.iter().map(|k| Request::Keys { keys: k.split('-').map(str::to_owned).collect() });
    Ok(parts.chain(keys).collect())
}

fn unescape(text: &str) -> Result<String, String> {
    let mut typed = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        typed.push(match c {
            '\\' => match rest.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('e') => '\u{1b}',
                Some('\\') => '\\',
                _ => return Err("a backslash is followed by n, t, e or another backslash".into()),
            },
            c => c,
        });
    }
    Ok(typed)
}

fn finish(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            crate::complain(&e);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_keys_become_requests() {
        let args = |text: &str, keys: &[&str]| TypeArgs {
            control: "c".into(),
            text: Some(text.into()),
            keys: keys.iter().map(|k| (*k).into()).collect(),
        };
        let keys = Request::Keys { keys: ["ctrl", "alt", "del"].map(String::from).to_vec() };
        let text = Request::Type { text: "a\\b\n".into() };
        assert_eq!(requests(&args("a\\\\b\\n", &["ctrl-alt-del"])), Ok(vec![text, keys]));
        assert_eq!(requests(&args(&"x".repeat(TEXT_MAX + 1), &[])).unwrap().len(), 2);
        assert!(requests(&args("\\x", &[])).is_err() && requests(&args("\\", &[])).is_err());
    }
}
