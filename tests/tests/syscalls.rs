//! That a publish is on disk before it is answered, shown by a trace of the system calls.

use std::process::Command;

use pipeline_tests::binary::{Dev, binary, part};

#[test]
fn a_publish_is_synced_before_it_is_answered() {
    let Some(strace) = part("strace", "strace") else { return };
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("trace");
    let mut command = Command::new(strace);
    // -D: the tracer is the one that stands aside, so that killing the child ends the pipeline.
    command
        .args(["-D", "-f", "-y", "-s", "32", "-e", "trace=fsync,fdatasync,read,recvfrom,write,writev,sendto", "-o"])
        .arg(&log);
    command.arg(binary());
    let mut dev = Dev::start_under(command, &[]);
    let (status, _) = dev.publish(None);
    assert_eq!(status, 200);
    dev.kill();

    let trace = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<_> = trace.lines().collect();
    let position = |from: usize, found: &dyn Fn(&str) -> bool| {
        lines.iter().skip(from).position(|line| found(line)).map(|at| at + from)
    };
    let request = position(0, &|line| line.contains("POST /publish")).expect("the request is read");
    let synced = |line: &str| (line.contains("fdatasync(") || line.contains("fsync(")) && line.contains("bus.redb");
    let begun = position(request, &synced).expect("the bus is synced after the request");
    let thread = lines[begun].split_whitespace().next().unwrap_or_default();
    let ended = if lines[begun].contains("= 0") {
        begun
    } else {
        position(begun + 1, &|line| line.starts_with(thread) && line.contains("sync resumed") && line.contains("= 0"))
            .expect("the sync ends well")
    };
    let answer = position(request, &|line| line.contains("HTTP/1.1 200 OK")).expect("the answer is written");
    assert!(
        ended < answer,
        "synced in line {ended}, answered in line {answer} of the trace:\n{}",
        lines[request..=answer].join("\n")
    );
}
