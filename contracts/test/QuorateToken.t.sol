// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {QuorateToken} from "../src/QuorateToken.sol";
import {IQuorateToken} from "../src/interfaces/IQuorateToken.sol";
import {Test} from "./Test.sol";

contract QuorateTokenTest is Test {
    address internal constant ALICE = address(0xA11CE);
    address internal constant BOB = address(0xB0B);

    function _token(uint256 alice, uint256 bob) internal returns (QuorateToken) {
        IQuorateToken.Allocation[] memory allocations = new IQuorateToken.Allocation[](2);
        allocations[0] = IQuorateToken.Allocation({account: ALICE, amount: alice});
        allocations[1] = IQuorateToken.Allocation({account: BOB, amount: bob});
        return new QuorateToken(allocations);
    }

    function testFuzz_constructor_mintsExactlyTheAllocations(uint256 alice, uint256 bob) public {
        (alice, bob) = (bound(alice, 1, 1e30), bound(bob, 1, 1e30));
        QuorateToken token = _token(alice, bob);
        assertEq(token.balanceOf(ALICE), alice);
        assertEq(token.balanceOf(BOB), bob);
        assertEq(token.totalSupply(), alice + bob);
    }

    function test_constructor_refusesAnEmptySupply() public {
        vm.expectRevert(abi.encodeWithSelector(IQuorateToken.NoAllocation.selector));
        new QuorateToken(new IQuorateToken.Allocation[](0));
    }

    function test_constructor_refusesAnAccountWithoutAnAmount() public {
        vm.expectRevert(abi.encodeWithSelector(IQuorateToken.EmptyAllocation.selector, BOB));
        _token(1, 0);
    }

    function testFuzz_transfer_keepsTheSupplyAndMovesTheVotes(uint256 amount, uint256 sent) public {
        amount = bound(amount, 1, 1e30);
        sent = bound(sent, 0, amount);
        QuorateToken token = _token(amount, 1);
        vm.prank(ALICE);
        token.delegate(ALICE);
        vm.prank(BOB);
        token.delegate(BOB);

        vm.prank(ALICE);
        // forge-lint: disable-next-line(erc20-unchecked-transfer)
        token.transfer(BOB, sent);

        assertEq(token.totalSupply(), amount + 1);
        assertEq(token.getVotes(ALICE), amount - sent);
        assertEq(token.getVotes(BOB), sent + 1);
    }

    function testFuzz_tokensThatArriveNowCarryNoVoteInThePast(uint256 amount) public {
        amount = bound(amount, 1, 1e30);
        QuorateToken token = _token(amount, 1);
        vm.prank(BOB);
        token.delegate(BOB);
        vm.warp(vm.getBlockTimestamp() + 10);
        uint256 before = vm.getBlockTimestamp() - 1;

        vm.prank(ALICE);
        // forge-lint: disable-next-line(erc20-unchecked-transfer)
        token.transfer(BOB, amount);

        assertEq(token.getPastVotes(BOB, before), 1);
        assertEq(token.getVotes(BOB), amount + 1);
    }

    function test_clockIsTheTimeInSeconds() public {
        QuorateToken token = _token(1, 1);
        vm.warp(1_900_000_000);
        assertEq(token.clock(), 1_900_000_000);
        assertEq(token.CLOCK_MODE(), "mode=timestamp");
    }

    function testFuzz_permit_letsTheHoldersSignatureApprove(uint256 key, uint256 amount) public {
        key = bound(key, 1, type(uint128).max);
        QuorateToken token = _token(1, 1);
        address owner = vm.addr(key);
        uint256 deadline = vm.getBlockTimestamp() + 1;
        bytes32 permit = keccak256(
            abi.encode(
                keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"),
                owner,
                BOB,
                amount,
                token.nonces(owner),
                deadline
            )
        );
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(key, keccak256(abi.encodePacked("\x19\x01", token.DOMAIN_SEPARATOR(), permit)));

        token.permit(owner, BOB, amount, deadline, v, r, s);

        assertEq(token.allowance(owner, BOB), amount);
        assertEq(token.nonces(owner), 1);
    }
}
