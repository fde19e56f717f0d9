// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IGovernor} from "@openzeppelin/contracts/governance/IGovernor.sol";
import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";

import {QuorateGovernor} from "../src/QuorateGovernor.sol";
import {QuorateToken} from "../src/QuorateToken.sol";
import {IQuorateToken} from "../src/interfaces/IQuorateToken.sol";
import {Test} from "./Test.sol";

contract QuorateGovernorTest is Test {
    address internal constant HOLDER = address(0xA11CE);
    address internal constant PAYEE = address(0xFEE);
    uint256 internal constant SUPPLY = 1_000_000e18;
    uint256 internal constant TREASURY = 100_000e18;
    uint48 internal constant DELAY = 60;
    uint32 internal constant PERIOD = 1 days;
    uint256 internal constant TIMELOCK_DELAY = 2 days;
    uint256 internal constant QUORUM_PERCENT = 4;

    TimelockController internal timelock;
    QuorateToken internal token;
    QuorateGovernor internal governor;

    function setUp() public {
        vm.warp(1_900_000_000);
        timelock = new TimelockController(TIMELOCK_DELAY, new address[](0), new address[](0), address(this));
        IQuorateToken.Allocation[] memory allocations = new IQuorateToken.Allocation[](2);
        allocations[0] = IQuorateToken.Allocation({account: HOLDER, amount: SUPPLY - TREASURY});
        allocations[1] = IQuorateToken.Allocation({account: address(timelock), amount: TREASURY});
        token = new QuorateToken(allocations);
        governor = new QuorateGovernor(token, timelock, DELAY, PERIOD, 0, QUORUM_PERCENT);
        timelock.grantRole(timelock.PROPOSER_ROLE(), address(governor));
        timelock.grantRole(timelock.CANCELLER_ROLE(), address(governor));
        timelock.grantRole(timelock.EXECUTOR_ROLE(), address(0));
        timelock.renounceRole(timelock.DEFAULT_ADMIN_ROLE(), address(this));
    }

    function test_constructor_refusesATimelockThatDoesNotWait() public {
        TimelockController hasty = new TimelockController(0, new address[](0), new address[](0), address(this));
        vm.expectRevert(abi.encodeWithSelector(QuorateGovernor.TimelockWithoutDelay.selector, address(hasty)));
        new QuorateGovernor(token, hasty, DELAY, PERIOD, 0, QUORUM_PERCENT);
    }

    function testFuzz_aPassedProposalPaysExactlyItsAmountOnceAfterItsDelay(uint256 amount) public {
        amount = bound(amount, 1, TREASURY);
        _delegate(HOLDER, SUPPLY - TREASURY);
        (address[] memory targets, uint256[] memory values, bytes[] memory calldatas) = _payment(amount);
        uint256 id = governor.propose(targets, values, calldatas, "Pay");
        vm.warp(vm.getBlockTimestamp() + DELAY + 1);
        vm.prank(HOLDER);
        governor.castVoteWithReason(id, 1, "because");
        vm.warp(vm.getBlockTimestamp() + PERIOD + 1);
        governor.queue(targets, values, calldatas, keccak256("Pay"));

        _expectRefused(targets, values, calldatas);
        vm.warp(vm.getBlockTimestamp() + TIMELOCK_DELAY);
        governor.execute(targets, values, calldatas, keccak256("Pay"));

        assertEq(token.balanceOf(PAYEE), amount);
        assertEq(token.balanceOf(address(timelock)), TREASURY - amount);
        assertEq(uint256(governor.state(id)), uint256(IGovernor.ProposalState.Executed));
        _expectRefused(targets, values, calldatas);
    }

    function testFuzz_withoutAQuorumNothingPasses(uint256 votes) public {
        uint256 needed = SUPPLY * QUORUM_PERCENT / 100;
        votes = bound(votes, 1, needed - 1);
        _delegate(address(0xCAFE), votes);
        uint256 id = _proposeAndVote(address(0xCAFE), 1);
        assertEq(uint256(governor.state(id)), uint256(IGovernor.ProposalState.Defeated));
    }

    function testFuzz_exactlyTheQuorumPasses(uint256 more) public {
        uint256 needed = SUPPLY * QUORUM_PERCENT / 100;
        more = bound(more, 0, SUPPLY - TREASURY - needed);
        _delegate(address(0xCAFE), needed + more);
        uint256 id = _proposeAndVote(address(0xCAFE), 1);
        assertEq(uint256(governor.state(id)), uint256(IGovernor.ProposalState.Succeeded));
    }

    function test_onlyItselfThroughTheTimelockCanChangeASetting() public {
        vm.expectRevert(abi.encodeWithSelector(IGovernor.GovernorOnlyExecutor.selector, address(this)));
        governor.setVotingDelay(1);
        vm.expectRevert(abi.encodeWithSelector(IGovernor.GovernorOnlyExecutor.selector, address(this)));
        governor.updateQuorumNumerator(1);
        vm.expectRevert(abi.encodeWithSelector(IGovernor.GovernorOnlyExecutor.selector, address(this)));
        governor.updateTimelock(timelock);
        vm.expectRevert(abi.encodeWithSelector(IGovernor.GovernorOnlyExecutor.selector, address(this)));
        governor.relay(PAYEE, 0, "");
    }

    function test_nobodyVotesTwice() public {
        _delegate(HOLDER, SUPPLY - TREASURY);
        (address[] memory targets, uint256[] memory values, bytes[] memory calldatas) = _payment(1);
        uint256 id = governor.propose(targets, values, calldatas, "Pay");
        vm.warp(vm.getBlockTimestamp() + DELAY + 1);
        vm.startPrank(HOLDER);
        governor.castVote(id, 0);
        vm.expectRevert(abi.encodeWithSelector(IGovernor.GovernorAlreadyCastVote.selector, HOLDER));
        governor.castVote(id, 1);
        vm.stopPrank();
    }

    function _expectRefused(address[] memory targets, uint256[] memory values, bytes[] memory calldatas) internal {
        (bool done,) =
            address(governor).call(abi.encodeCall(governor.execute, (targets, values, calldatas, keccak256("Pay"))));
        assertTrue(!done, "the proposal was executed too early or twice");
    }

    function _delegate(address to, uint256 votes) internal {
        vm.startPrank(HOLDER);
        // forge-lint: disable-next-line(erc20-unchecked-transfer)
        token.transfer(to, votes);
        vm.stopPrank();
        vm.prank(to);
        token.delegate(to);
    }

    function _proposeAndVote(address voter, uint8 support) internal returns (uint256 id) {
        (address[] memory targets, uint256[] memory values, bytes[] memory calldatas) = _payment(1);
        id = governor.propose(targets, values, calldatas, "Pay");
        vm.warp(vm.getBlockTimestamp() + DELAY + 1);
        vm.prank(voter);
        governor.castVote(id, support);
        vm.warp(vm.getBlockTimestamp() + PERIOD + 1);
    }

    function _payment(uint256 amount)
        internal
        view
        returns (address[] memory targets, uint256[] memory values, bytes[] memory calldatas)
    {
        targets = new address[](1);
        values = new uint256[](1);
        calldatas = new bytes[](1);
        targets[0] = address(token);
        calldatas[0] = abi.encodeCall(token.transfer, (PAYEE, amount));
    }
}
