//! What disks are, for people.

use std::io::{self, Write};

use crate::output::printable;
use crate::size::Size;
use vireo_chain::{Info, Report};
use vireo_vdisk::Fact;

/// What a disk is.
pub fn print_info(info: &Info, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "disk       {}", printable(&info.path))?;
    writeln!(out, "format     {}, {}", info.format, info.kind)?;
    writeln!(out, "size       {} ({} bytes)", Size(info.size), info.size)?;
    writeln!(out, "allocated  {}", Size(info.allocated))?;
    writeln!(out, "sector     {} bytes", info.sector)?;
    if let Some(block) = info.block {
        writeln!(out, "block      {}", Size(block.into()))?;
    }
    if let Some(id) = &info.id {
        writeln!(out, "identity   {id}")?;
    }
    if let Some(parent) = &info.parent {
        writeln!(out, "parent     {}", printable(parent))?;
    }
    Ok(())
}

/// What was found in a disk and its parents.
pub fn print_reports(reports: &[Report], out: &mut dyn Write) -> io::Result<()> {
    for r in reports {
        let verdict = if r.harmful { "DAMAGED" } else { "sound" };
        writeln!(out, "{}: {verdict}", printable(&r.path))?;
        r.findings.iter().try_for_each(|f| writeln!(out, "  {f}"))?;
    }
    Ok(())
}

/// What an image's structures say: a line for each fact, what belongs to it indented.
pub fn print_fact(fact: &Fact, out: &mut dyn Write) -> io::Result<()> {
    print_under(fact, 0, out)
}

fn print_under(fact: &Fact, depth: usize, out: &mut dyn Write) -> io::Result<()> {
    let indent = "  ".repeat(depth);
    match fact {
        Fact::Group(facts) => facts.iter().try_for_each(|(name, fact)| match line(fact) {
            Some(text) => writeln!(out, "{indent}{name}: {text}"),
            None => {
                writeln!(out, "{indent}{name}:")?;
                print_under(fact, depth + 1, out)
            }
        }),
        Fact::List(facts) => facts.iter().enumerate().try_for_each(|(n, fact)| match line(fact) {
            Some(text) => writeln!(out, "{indent}[{n}] {text}"),
            None => {
                writeln!(out, "{indent}[{n}]")?;
                print_under(fact, depth + 1, out)
            }
        }),
        single => writeln!(out, "{indent}{}", line(single).unwrap_or_default()),
    }
}

/// A fact that has a line for itself, or shares one.
fn line(fact: &Fact) -> Option<String> {
    match fact {
        Fact::Number(n) => Some(n.to_string()),
        Fact::Flag(yes) => Some(if *yes { "yes" } else { "no" }.into()),
        // What an image says must not steer the terminal.
        Fact::Text(text) => Some(text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()),
        Fact::List(facts) if facts.is_empty() => Some("none".into()),
        Fact::Group(facts) if facts.len() <= 4 => {
            let short = facts.iter().map(|(name, fact)| match fact {
                Fact::Group(_) | Fact::List(_) => None,
                single => line(single).map(|text| format!("{name} {text}")),
            });
            Some(short.collect::<Option<Vec<_>>>()?.join(", ")).filter(|text| text.len() <= 100)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_lines_and_cannot_steer_a_terminal() {
        let run = Fact::Group(vec![("first", 1u64.into()), ("state", "here\x1b[2J".into())]);
        let many = Fact::Group((0..5).map(|n| ("a", Fact::Number(n))).collect());
        let fact = Fact::Group(vec![("runs", Fact::List(vec![run, many])), ("log", Fact::List(vec![]))]);
        let mut out = Vec::new();
        print_fact(&fact, &mut out).expect("memory");
        let text = String::from_utf8(out).expect("text");
        let expected = "runs:\n  [0] first 1, state here\u{fffd}[2J\n  [1]\n    a: 0\n    a: 1\n    a: 2\n    a: 3\n    a: 4\nlog: none\n";
        assert_eq!(text, expected);
    }
}
