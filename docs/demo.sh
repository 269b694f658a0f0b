#!/bin/sh
# The demonstration: one real kernel, patched once, on two hypervisors. Called by `make demo`.
set -eu
pvpatch=${PVPATCH:-pvpatch}
work=${WORK:-build/demo}
mkdir -p "$work"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '\033[2m$ pvpatch %s\033[0m\n' "$*"; "$pvpatch" "$@"; }

if command -v apt-get >/dev/null 2>&1 && "$pvpatch" guests fetch gnumach-i386; then
    guest=$("$pvpatch" guests path gnumach-i386)
    append="console=com0"
    end="No bootstrap code loaded with the kernel!"
    say "The guest is GNU Mach as Debian ships it: $guest"
else
    guest=samples/native-i386/native-i386.elf
    append=""
    end="DONE passed="
    say "No apt (or no network) here: the guest is the shipped sample kernel, $guest"
fi

patched="$work/$(basename "$guest").patched"

say "1. Which instructions of it touch the machine?"
show scan "$guest"
say "2. Rewrite them into calls on the unified ABI"
show patch "$guest" -o "$patched"
say "3. Is every changed byte explained?"
show diff "$guest" "$patched" | tail -n 12
say "4. The same file on bare hardware (the call page it carries) ..."
show run "$patched" --backend bare --append "$append" --until "$end"
say "5. ... and on lguest, where its kernel runs at privilege level 1"
show run "$patched" --backend lguest --append "$append" --until "$end" --stats "$work/lguest.json"
say "6. The unpatched kernel on lguest, for comparison"
show run "$guest" --backend lguest --append "$append" --until "$end" --max-time 5 || echo "(exit code $?: that is why it needs patching)"
say "7. Undo: bit for bit the file Debian ships"
show revert "$patched" -o "$work/reverted"
cmp "$guest" "$work/reverted" && echo "identical"
