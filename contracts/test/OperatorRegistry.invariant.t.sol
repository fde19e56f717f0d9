// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {OperatorRegistry} from "../src/OperatorRegistry.sol";
import {QuorateToken} from "../src/QuorateToken.sol";
import {IOperatorRegistry} from "../src/interfaces/IOperatorRegistry.sol";
import {IQuorateToken} from "../src/interfaces/IQuorateToken.sol";
import {Test, Vm} from "./Test.sol";

/// @dev Does what operators may do, in any order, with amounts that are allowed: a revert is a finding (fail_on_revert).
contract Operators {
    Vm internal constant vm = Vm(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);
    uint256 public constant COUNT = 4;
    uint256 public constant EACH = 1e27;
    address public constant COURT = address(0xC0547);
    address internal constant GOVERNANCE = address(0x60F);
    address internal constant SLASHER = address(0x51A54);

    QuorateToken public token;
    OperatorRegistry public registry;
    mapping(address operator => uint256) public startedAt;
    bool public withdrewEarly;
    bool public heldTooLong;

    constructor() {
        IQuorateToken.Allocation[] memory allocations = new IQuorateToken.Allocation[](COUNT);
        for (uint256 i = 0; i < COUNT; ++i) {
            allocations[i] = IQuorateToken.Allocation({account: account(i), amount: EACH});
        }
        token = new QuorateToken(allocations);
        registry = new OperatorRegistry(token, 100e18, 7 days, GOVERNANCE);
        vm.prank(GOVERNANCE);
        registry.setSlasher(SLASHER);
        for (uint256 i = 0; i < COUNT; ++i) {
            IOperatorRegistry.Model[] memory models = new IOperatorRegistry.Model[](1);
            models[0] =
                IOperatorRegistry.Model({name: "minilm", manifestHash: bytes32(uint256(1)), priceIn: 1, priceOut: 2});
            vm.startPrank(account(i));
            token.approve(address(registry), type(uint256).max);
            registry.register(
                IOperatorRegistry.Offer({
                    key: address(uint160(0x2000 + i)),
                    endpoint: "http://operator",
                    region: "",
                    deviceClass: "cpu",
                    capacity: 1,
                    models: models
                })
            );
            vm.stopPrank();
        }
    }

    function account(uint256 i) public pure returns (address) {
        return address(uint160(0x1000 + i % COUNT));
    }

    function stake(uint256 who, uint256 amount) external {
        uint256 balance = token.balanceOf(account(who));
        if (balance == 0) return;
        vm.prank(account(who));
        registry.stake(1 + amount % balance);
    }

    function stakeLittle(uint256 who, uint256 amount) external {
        if (token.balanceOf(account(who)) < 200e18) return;
        vm.prank(account(who));
        registry.stake(1 + amount % 200e18);
    }

    function startUnbonding(uint256 who, uint256 amount) external {
        uint256 staked = registry.operatorOf(account(who)).stake;
        if (staked == 0) return;
        vm.prank(account(who));
        registry.startUnbonding(1 + amount % staked);
        startedAt[account(who)] = vm.getBlockTimestamp();
    }

    function withdraw(uint256 who) external {
        IOperatorRegistry.Operator memory operator = registry.operatorOf(account(who));
        if (operator.unbonding == 0) return;
        uint256 waited = vm.getBlockTimestamp() - startedAt[account(who)];
        vm.prank(account(who));
        try registry.withdraw() {
            withdrewEarly = withdrewEarly || waited < 7 days || vm.getBlockTimestamp() < _end(operator);
        } catch {
            heldTooLong = heldTooLong || waited >= 37 days || vm.getBlockTimestamp() >= _end(operator);
        }
    }

    function hold(uint256 who, uint256 time) external {
        vm.prank(SLASHER);
        registry.hold(account(who), uint64(vm.getBlockTimestamp() + time % 30 days));
    }

    function slash(uint256 who, uint256 amount) external {
        IOperatorRegistry.Operator memory operator = registry.operatorOf(account(who));
        if (operator.stake + operator.unbonding == 0) return;
        vm.prank(SLASHER);
        registry.slash(account(who), 1 + amount % 300e18, COURT, bytes32(amount));
    }

    function pauseOrUnpause(uint256 who) external {
        bool paused = registry.operatorOf(account(who)).paused;
        vm.prank(account(who));
        if (paused) registry.unpause();
        else registry.pause();
    }

    function wait(uint256 time) external {
        vm.warp(vm.getBlockTimestamp() + time % 10 days);
    }

    /// @dev By the words of the interface: the delay's end, or the hold's if that is later, within 30 days of it.
    function _end(IOperatorRegistry.Operator memory operator) private view returns (uint256) {
        uint256 ready = startedAt[operator.account] + 7 days;
        if (operator.heldUntil <= ready) return ready;
        return operator.heldUntil < ready + 30 days ? operator.heldUntil : ready + 30 days;
    }
}

contract OperatorRegistryInvariantTest is Test {
    Operators internal operators;

    function setUp() public {
        vm.warp(1_900_000_000);
        operators = new Operators();
    }

    /// @dev What forge calls at random.
    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(operators);
    }

    function invariant_theRegistryHoldsExactlyStakesAndUnbonding() public view {
        OperatorRegistry registry = operators.registry();
        uint256 owed = 0;
        for (uint256 i = 0; i < operators.COUNT(); ++i) {
            IOperatorRegistry.Operator memory operator = registry.operatorOf(operators.account(i));
            owed += operator.stake + operator.unbonding;
        }
        assertEq(operators.token().balanceOf(address(registry)), owed);
        uint256 outside = operators.token().balanceOf(operators.COURT());
        for (uint256 i = 0; i < operators.COUNT(); ++i) {
            outside += operators.token().balanceOf(operators.account(i));
        }
        assertEq(owed + outside, operators.COUNT() * operators.EACH());
    }

    function invariant_stakeLeavesNeitherEarlyNorNever() public view {
        assertTrue(!operators.withdrewEarly(), "unbonding or held stake left early");
        assertTrue(!operators.heldTooLong(), "stake could not leave that was free");
    }

    function invariant_listedAreExactlyThoseWithTheMinimum() public view {
        OperatorRegistry registry = operators.registry();
        uint256 listed = 0;
        for (uint256 i = 0; i < operators.COUNT(); ++i) {
            address account = operators.account(i);
            IOperatorRegistry.Operator memory operator = registry.operatorOf(account);
            bool staked = operator.stake >= registry.minimumStake();
            if (staked) ++listed;
            assertTrue(registry.isActive(account) == (staked && !operator.paused), "active = listed and not paused");
        }
        assertEq(registry.operatorCount(), listed);
    }
}
