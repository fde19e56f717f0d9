"""Plants one fault at a time into the contracts, and fails unless the tests notice each.

    python contracts/mutants.py [--only CONTRACT] [--skip N] [--forge PATH]

A fault is one line changed, in a copy: the checkout stays as it is. A mutant whose line is no longer there is an error:
whoever changes a line changes its mutants. Slow (the compiler runs anew for each), so it runs at night.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
THIRD_PARTY = HERE.parent / "third_party"
FORGE = THIRD_PARTY / "evm/node_modules/@foundry-rs/forge-linux-amd64/bin/forge"

# contract -> (line as it is, line as it must never be)
MUTANTS: dict[str, list[tuple[str, str]]] = {
    "InferencePayments": [
        ("if (address(token_).code.length == 0)", "if (false)"),
        ("closeDelay_ > LONGEST_CLOSE_DELAY)", "closeDelay_ > LONGEST_CLOSE_DELAY + 1)"),
        ("if (closeDelay_ == 0 ||", "if ("),
        ("external nonReentrant {\n        _deposit(payer", "external {\n        _deposit(payer"),
        ("bytes calldata signature) external nonReentrant {", "bytes calldata signature) external {"),
        ("function close(address operator) external nonReentrant {", "function close(address operator) external {"),
        ("if (why != Refusal.None) revert VoucherRefused(why, stated, known);", ""),
        ("vouchers.length > MOST_VOUCHERS)", "vouchers.length >= MOST_VOUCHERS)"),
        ("if (signatures.length != vouchers.length)", "if (signatures.length < vouchers.length)"),
        ("= voucher.operator == operator\n", "= voucher.operator != address(0)\n"),
        ("if (why == Refusal.None) sum +=", "if (why != Refusal.NotCovered) sum +="),
        ("if (sum == 0) revert NothingRedeemed", "if (false) revert NothingRedeemed"),
        ("token.safeTransfer(operator, sum);", "token.safeTransfer(msg.sender, sum);"),
        ("revert ChannelIsClosing(msg.sender, operator, channel.closableAt);\n", "{}\n"),
        ("if (channel.deposited == 0) revert ChannelIsEmpty", "if (false) revert ChannelIsEmpty"),
        ("uint64(block.timestamp) + closeDelay;", "uint64(block.timestamp) + closeDelay - 1;"),
        ("if (channel.closableAt == 0) revert", "if (false) revert"),
        ("if (block.timestamp < channel.closableAt)", "if (block.timestamp <= channel.closableAt)"),
        ("channel.deposited - channel.claimed;", "channel.deposited;"),
        ("epoch: channel.epoch + 1,", "epoch: channel.epoch,"),
        ("claimed: 0,", "claimed: channel.claimed,"),
        ("if (rest != 0) token", "token"),
        (
            "voucher.units,\n                    voucher.receiptHash",
            "uint64(7),\n                    voucher.receiptHash",
        ),
        ("payer == address(0) || payer == address(this)", "payer == address(0)"),
        ("operator == address(0) || operator == address(this)", "operator == address(this)"),
        ("if (amount == 0) revert AmountIsZero();", ""),
        ("if (channel.closableAt != 0) revert ChannelIsClosing(payer", "if (false) revert ChannelIsClosing(payer"),
        ("if (amount > room)", "if (amount > room + 1)"),
        ("if (received != amount)", "if (received > amount)"),
        ("amount = voucher.total - channel.claimed;", "amount = voucher.total;"),
        ("channel.claimed = voucher.total;", "channel.claimed += voucher.total;"),
        ("if (voucher.epoch != channel.epoch)", "if (voucher.epoch < channel.epoch)"),
        ("if (voucher.epoch != channel.epoch)", "if (voucher.epoch > channel.epoch)"),
        ("if (block.timestamp > voucher.expiry)", "if (block.timestamp >= voucher.expiry)"),
        ("if (voucher.total <= channel.claimed)", "if (voucher.total < channel.claimed)"),
        ("if (voucher.total > channel.deposited)", "if (voucher.total > uint256(channel.deposited) + 1)"),
        ("if (signer != voucher.payer)", "if (signer == address(0))"),
    ],
    "OperatorRegistry": [
        ("if (msg.sender != slasher) revert", "if (slasher == address(0)) revert"),
        ("unbondingDelay_ > LONGEST_UNBONDING_DELAY)", "unbondingDelay_ >= LONGEST_UNBONDING_DELAY)"),
        ("if (governance_ == address(0))", "if (false)"),
        ("!= name) continue;", "== name) continue;"),
        ("models[i].priceOut = priceOut;", "models[i].priceOut = priceIn;"),
        ("operator.stake += amount;", "operator.stake += amount + 1;"),
        ("if (received != amount)", "if (received > amount)"),
        ("function stake(uint256 amount) external nonReentrant", "function stake(uint256 amount) external"),
        ("function withdraw() external nonReentrant", "function withdraw() external"),
        ("operator.unbonding += amount;", "operator.unbonding = amount;"),
        ("uint64(block.timestamp) + unbondingDelay;", "uint64(block.timestamp) + unbondingDelay - 1;"),
        ("if (block.timestamp < released)", "if (block.timestamp < operator.withdrawableAt)"),
        ("operator.unbonding = 0;", ""),
        ("if (msg.sender != governance)", "if (msg.sender != governance && msg.sender != slasher)"),
        ("if (until > latest)", "if (until > latest + 1)"),
        ("external onlySlasher {", "external {"),
        ("        onlySlasher\n", ""),
        ("        nonReentrant\n        returns (uint256 taken)", "        returns (uint256 taken)"),
        ("to == address(0) || to == address(this)", "to == address(0)"),
        ("amount < slashed.stake ? amount : slashed.stake;", "amount < slashed.stake ? amount : 0;"),
        ("left < slashed.unbonding ? left : slashed.unbonding;", "0;"),
        ("slashed.unbonding -= fromUnbonding;", ""),
        ("_relist(slashed);", ""),
        ("if (taken == 0) revert NothingToSlash(operator);", ""),
        ("operator.withdrawableAt + LONGEST_HOLD;", "uint64(block.timestamp) + LONGEST_HOLD;"),
        ("return held > operator.withdrawableAt ? held : operator.withdrawableAt;", "return held;"),
        ("if (names[j] == names[i]) revert", "if (false) revert"),
        ("holder != address(0) && holder != account", "holder == account"),
        ("if (operator.stake >= minimumStake)", "if (operator.stake > minimumStake)"),
        ("_listed.contains(operator) && !_operators[operator].paused", "_listed.contains(operator)"),
    ],
}


def main() -> int:
    """Exit code 0: every mutant was noticed; 1: some lived."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=sorted(MUTANTS), help="mutants of this contract only")
    parser.add_argument("--skip", type=int, default=0, help="begin behind so many: go on where an earlier run ended")
    parser.add_argument("--forge", type=Path, default=FORGE, help="the forge binary (default: the pinned one)")
    options = parser.parse_args()
    lived, count = list[str](), 0
    with tempfile.TemporaryDirectory(prefix="quorate-mutants-") as folder:
        place = Path(folder) / "contracts"
        shutil.copytree(HERE, place, symlinks=True, ignore=shutil.ignore_patterns("out", "cache", "__pycache__"))
        (Path(folder) / "third_party").symlink_to(THIRD_PARTY)
        for name in [options.only] if options.only else sorted(MUTANTS):
            source = place / f"src/{name}.sol"
            sound = source.read_text()
            if not _passes(options.forge, place, name):
                sys.exit(f"the tests of {name} fail without a mutant")
            for old, new in MUTANTS[name][options.skip :]:
                if sound.count(old) != 1:
                    sys.exit(f"{name} has {sound.count(old)} times {old!r}; a mutant needs exactly one place")
                source.write_text(sound.replace(old, new))
                began, count = time.monotonic(), count + 1
                noticed = not _passes(options.forge, place, name)
                verdict = "noticed" if noticed else "LIVED  "
                print(
                    f"{verdict} {time.monotonic() - began:4.0f} s  {name}: {_line(old)}  ->  {_line(new)}", flush=True
                )
                if not noticed:
                    lived.append(f"{name}: {_line(old)}  ->  {_line(new)}")
            source.write_text(sound)
    print(f"{count - len(lived)} of {count} mutants were noticed")
    return 1 if lived else 0


def _passes(forge: Path, place: Path, name: str) -> bool:
    """Whether the tests of the contract pass; exits where the mutant does not even compile."""
    # Warnings (of what a mutant leaves unused) are no error here. Tests that are linked dynamically need not be
    # compiled anew with each mutant, and without the optimiser solc takes half as long.
    environment = os.environ | {
        "FOUNDRY_DENY": "never",
        "FOUNDRY_DYNAMIC_TEST_LINKING": "true",
        "FOUNDRY_OPTIMIZER": "false",
        "FOUNDRY_INVARIANT_RUNS": "32",
    }
    command = [forge.resolve(), "test", "--match-path", f"test/{name}*.t.sol", "--fail-fast"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if "Compiler run failed" in done.stdout + done.stderr or "Ran " not in done.stdout:
        sys.exit(f"a mutant of {name} cannot be tested:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.returncode == 0


def _line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


if __name__ == "__main__":
    raise SystemExit(main())
