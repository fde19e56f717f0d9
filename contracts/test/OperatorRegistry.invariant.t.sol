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
    uint256 internal constant EACH = 1e27;

    QuorateToken public token;
    OperatorRegistry public registry;

    constructor() {
        IQuorateToken.Allocation[] memory allocations = new IQuorateToken.Allocation[](COUNT);
        for (uint256 i = 0; i < COUNT; ++i) {
            allocations[i] = IQuorateToken.Allocation({account: account(i), amount: EACH});
        }
        token = new QuorateToken(allocations);
        registry = new OperatorRegistry(token, 100e18, 7 days);
        for (uint256 i = 0; i < COUNT; ++i) {
            IOperatorRegistry.Model[] memory models = new IOperatorRegistry.Model[](1);
            models[0] = IOperatorRegistry.Model({name: "minilm", manifestHash: bytes32(uint256(1))});
            vm.startPrank(account(i));
            token.approve(address(registry), type(uint256).max);
            registry.register(address(uint160(0x2000 + i)), "http://operator", models);
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
    }

    function withdraw(uint256 who) external {
        IOperatorRegistry.Operator memory operator = registry.operatorOf(account(who));
        if (operator.unbonding == 0 || block.timestamp < operator.withdrawableAt) return;
        vm.prank(account(who));
        registry.withdraw();
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
