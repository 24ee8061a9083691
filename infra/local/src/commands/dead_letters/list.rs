//! `contextflow dead-letters list`.

use crate::dead_letters::{Group, Selection, groups};
use crate::error::Failure;

/// Arguments of `contextflow dead-letters list`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    whose: super::Whose,
    #[command(flatten)]
    selection: Selection,
    /// Count those that were replayed as well
    #[arg(long)]
    replayed: bool,
    /// Print an array of objects
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(args: &Args) -> Result<(), Failure> {
    let source = args.whose.open(&args.whose.registry()?).await?;
    let groups = groups(source.as_ref(), &args.selection, args.replayed).await?;
    if args.json {
        println!("{}", serde_json::to_string(&groups).map_err(Failure::work)?);
        return Ok(());
    }
    if groups.is_empty() {
        println!("no dead letters");
        return Ok(());
    }
    print(&groups);
    let letters: u64 = groups.iter().map(|group| group.letters).sum();
    println!("{letters} in all; `contextflow dead-letters show ID` says what is wrong with one");
    Ok(())
}

fn print(groups: &[Group]) {
    let header = ["letters", "stage", "reason", "first seen", "last seen", "example"].map(str::to_string);
    let row = |group: &Group| {
        let Group { stage, reason, letters, first_seen, last_seen, example } = group;
        [letters.to_string(), stage.clone(), reason.clone(), first_seen.clone(), last_seen.clone(), example.clone()]
    };
    let rows: Vec<_> = std::iter::once(header).chain(groups.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    for row in &rows {
        let [letters, rest @ ..] = row;
        let cells = rest.iter().enumerate().map(|(index, cell)| format!("{cell:<width$}", width = width(index + 1)));
        let line = format!("{letters:>width$}  {}", cells.collect::<Vec<_>>().join("  "), width = width(0));
        println!("{}", line.trim_end());
    }
}
