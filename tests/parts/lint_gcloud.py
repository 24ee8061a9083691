"""Checks every gcloud command of a dry run against the installed gcloud: that there is such a command with such flags.

    infra/deploy.sh --settings infra/settings.example.env --dry-run | python tests/parts/lint_gcloud.py
    python tests/parts/lint_gcloud.py FILE...

Prints one line a command that gcloud does not take, else how many were checked. Exit code 1 where one is not taken or none
was found: `gcloud meta lint-gcloud-commands` itself ends with 0 in any case. Values of free-form flags are not checked.
"""

import json
import shlex
import subprocess
import sys
import tempfile


def commands(lines):
    """The gcloud commands among the lines, quoted as gcloud's own parser reads them."""
    for number, line in enumerate(lines, 1):
        if line.startswith("gcloud "):
            yield number, shlex.join(shlex.split(line))


def lint(found):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([{"command_string": command, "id": str(number)} for number, command in found], file)
        file.flush()
        arguments = ["gcloud", "meta", "lint-gcloud-commands", "--serialize", f"--commands-file={file.name}"]
        process = subprocess.run(arguments, capture_output=True, text=True, check=False)
    try:
        return [result for results in json.loads(process.stdout).values() for result in results]
    except json.JSONDecodeError:
        sys.exit(f"gcloud meta lint-gcloud-commands gave no JSON:\n{process.stdout[:2000]}\n{process.stderr[:2000]}")


def main():
    lines = []
    for name in sys.argv[1:] or ["/dev/stdin"]:
        with open(name, encoding="utf-8") as file:
            lines += file.read().splitlines()
    found = list(commands(lines))
    results = lint(found) if found else []
    faults = [result for result in results if result.get("success") is not True]
    for fault in faults:
        reason = " ".join(str(fault.get("error_message")).split("To search the help text")[0].split())
        print(f"{reason}: {fault.get('command_string')}")
    if faults:
        sys.exit(1)
    print(f"gcloud takes {len(results)} of {len(found)} commands")
    sys.exit(0 if found and len(results) == len(found) else 1)


if __name__ == "__main__":
    main()
