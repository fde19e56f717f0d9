// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {OperatorRegistry} from "../src/OperatorRegistry.sol";
import {QuorateToken} from "../src/QuorateToken.sol";
import {IOperatorRegistry} from "../src/interfaces/IOperatorRegistry.sol";
import {IQuorateToken} from "../src/interfaces/IQuorateToken.sol";
import {Test} from "./Test.sol";

abstract contract RegistryTest is Test {
    address internal constant OPERATOR = address(0xA11CE);
    address internal constant OTHER = address(0xB0B);
    address internal constant KEY = address(0xCE1);
    address internal constant OTHER_KEY = address(0xCE2);
    string internal constant ENDPOINT = "http://127.0.0.1:8000";
    uint256 internal constant RICH = 1e30;
    uint256 internal constant MINIMUM = 100e18;
    uint64 internal constant DELAY = 7 days;

    QuorateToken internal token;
    OperatorRegistry internal registry;

    function setUp() public virtual {
        vm.warp(1_900_000_000);
        IQuorateToken.Allocation[] memory allocations = new IQuorateToken.Allocation[](2);
        allocations[0] = IQuorateToken.Allocation({account: OPERATOR, amount: RICH});
        allocations[1] = IQuorateToken.Allocation({account: OTHER, amount: RICH});
        token = new QuorateToken(allocations);
        registry = new OperatorRegistry(token, MINIMUM, DELAY);
        for (uint256 i = 0; i < 2; ++i) {
            vm.prank(i == 0 ? OPERATOR : OTHER);
            token.approve(address(registry), type(uint256).max);
        }
    }

    function _models(uint256 count) internal pure returns (IOperatorRegistry.Model[] memory models) {
        models = new IOperatorRegistry.Model[](count);
        for (uint256 i = 0; i < count; ++i) {
            models[i] = IOperatorRegistry.Model({name: "minilm", manifestHash: bytes32(i + 1)});
        }
    }

    function _text(uint256 length) internal pure returns (string memory) {
        return string(new bytes(length));
    }

    function _register(address operator, address key) internal {
        vm.prank(operator);
        registry.register(key, ENDPOINT, _models(1));
    }

    function _stake(address operator, uint256 amount) internal {
        vm.prank(operator);
        registry.stake(amount);
    }

    function _unbond(address operator, uint256 amount) internal {
        vm.prank(operator);
        registry.startUnbonding(amount);
    }
}

contract OperatorRegistryDeployTest is RegistryTest {
    function test_constructor_refusesAMinimumOfZero() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.MinimumStakeIsZero.selector));
        new OperatorRegistry(token, 0, DELAY);
    }

    function test_constructor_refusesADelayOfZero() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.UnbondingDelayIsZero.selector));
        new OperatorRegistry(token, MINIMUM, 0);
    }
}

contract OperatorRegistryRegisterTest is RegistryTest {
    function test_register_keepsWhatWasStatedAndEmits() public {
        vm.expectEmit();
        emit IOperatorRegistry.Registered(OPERATOR, KEY, ENDPOINT);
        vm.prank(OPERATOR);
        registry.register(KEY, ENDPOINT, _models(2));

        IOperatorRegistry.Operator memory operator = registry.operatorOf(OPERATOR);
        assertEq(operator.account, OPERATOR);
        assertEq(operator.key, KEY);
        assertEq(operator.endpoint, ENDPOINT);
        assertEq(operator.models.length, 2);
        assertEq(operator.models[1].manifestHash, bytes32(uint256(2)));
        assertEq(operator.stake, 0);
        assertEq(registry.accountOf(KEY), OPERATOR);
        assertTrue(!registry.isActive(OPERATOR), "active without a stake");
        assertEq(registry.operatorCount(), 0);
    }

    function test_register_refusesASecondTime() public {
        _register(OPERATOR, KEY);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.AlreadyRegistered.selector, OPERATOR));
        _register(OPERATOR, OTHER_KEY);
    }

    function testFuzz_register_refusesAKeyOfAnother(address key) public {
        vm.assume(key != address(0));
        _register(OPERATOR, key);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.KeyTaken.selector, key, OPERATOR));
        _register(OTHER, key);
    }

    function test_register_refusesTheKeyZero() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.KeyIsZero.selector));
        _register(OPERATOR, address(0));
    }

    function testFuzz_register_boundsTheEndpoint(uint256 length) public {
        length = bound(length, 0, 600);
        if (length == 0 || length > 256) {
            vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.EndpointLength.selector, length, 256));
        }
        vm.prank(OPERATOR);
        registry.register(KEY, _text(length), _models(1));
    }

    function testFuzz_register_boundsTheModels(uint256 count) public {
        count = bound(count, 0, 40);
        if (count == 0 || count > 16) {
            vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.ModelCount.selector, count, 16));
        }
        vm.prank(OPERATOR);
        registry.register(KEY, ENDPOINT, _models(count));
    }

    function testFuzz_register_boundsAModelsName(uint256 length) public {
        length = bound(length, 0, 200);
        IOperatorRegistry.Model[] memory models = _models(1);
        models[0].name = _text(length);
        if (length == 0 || length > 64) {
            vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.ModelNameLength.selector, models[0].name, 64));
        }
        vm.prank(OPERATOR);
        registry.register(KEY, ENDPOINT, models);
    }

    function test_register_refusesAModelWithoutAHash() public {
        IOperatorRegistry.Model[] memory models = _models(1);
        models[0].manifestHash = 0;
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.ModelHashIsZero.selector, "minilm"));
        vm.prank(OPERATOR);
        registry.register(KEY, ENDPOINT, models);
    }
}

contract OperatorRegistryUpdateTest is RegistryTest {
    function test_update_replacesKeyEndpointAndModels() public {
        _register(OPERATOR, KEY);
        vm.expectEmit();
        emit IOperatorRegistry.Updated(OPERATOR, OTHER_KEY, "http://new");
        vm.prank(OPERATOR);
        registry.update(OTHER_KEY, "http://new", _models(3));

        IOperatorRegistry.Operator memory operator = registry.operatorOf(OPERATOR);
        assertEq(operator.key, OTHER_KEY);
        assertEq(operator.endpoint, "http://new");
        assertEq(operator.models.length, 3);
    }

    function test_update_leavesTheOldKeyWithItsOperator() public {
        _register(OPERATOR, KEY);
        vm.prank(OPERATOR);
        registry.update(OTHER_KEY, ENDPOINT, _models(1));
        assertEq(registry.accountOf(KEY), OPERATOR);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.KeyTaken.selector, KEY, OPERATOR));
        _register(OTHER, KEY);
        vm.prank(OPERATOR);
        registry.update(KEY, ENDPOINT, _models(1));
        assertEq(registry.operatorOf(OPERATOR).key, KEY);
    }

    function test_update_needsARegistration() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotRegistered.selector, OPERATOR));
        vm.prank(OPERATOR);
        registry.update(KEY, ENDPOINT, _models(1));
    }
}

contract OperatorRegistryStakeTest is RegistryTest {
    function testFuzz_stake_takesExactlyTheAmountAndListsFromTheMinimumOn(uint256 amount) public {
        amount = bound(amount, 1, RICH);
        _register(OPERATOR, KEY);
        vm.expectEmit();
        emit IOperatorRegistry.Staked(OPERATOR, amount, amount);
        _stake(OPERATOR, amount);

        assertEq(registry.operatorOf(OPERATOR).stake, amount);
        assertEq(token.balanceOf(address(registry)), amount);
        assertEq(token.balanceOf(OPERATOR), RICH - amount);
        assertTrue(registry.isActive(OPERATOR) == (amount >= MINIMUM), "active exactly from the minimum on");
        assertEq(registry.operatorCount(), amount >= MINIMUM ? 1 : 0);
    }

    function test_stake_refusesNothing() public {
        _register(OPERATOR, KEY);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.AmountIsZero.selector));
        _stake(OPERATOR, 0);
    }

    function test_stake_needsARegistration() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotRegistered.selector, OPERATOR));
        _stake(OPERATOR, MINIMUM);
    }
}

contract OperatorRegistryUnbondTest is RegistryTest {
    function setUp() public override {
        super.setUp();
        _register(OPERATOR, KEY);
    }

    function testFuzz_startUnbonding_movesExactlyTheAmount(uint256 staked, uint256 amount) public {
        staked = bound(staked, 1, RICH);
        amount = bound(amount, 1, staked);
        _stake(OPERATOR, staked);
        vm.expectEmit();
        emit IOperatorRegistry.UnbondingStarted(
            OPERATOR, amount, staked - amount, uint64(vm.getBlockTimestamp()) + DELAY
        );
        _unbond(OPERATOR, amount);

        IOperatorRegistry.Operator memory operator = registry.operatorOf(OPERATOR);
        assertEq(operator.stake, staked - amount);
        assertEq(operator.unbonding, amount);
        assertTrue(registry.isActive(OPERATOR) == (staked - amount >= MINIMUM), "unbonding stake does not count");
    }

    function testFuzz_startUnbonding_refusesMoreThanTheStake(uint256 staked, uint256 amount) public {
        staked = bound(staked, 1, RICH);
        amount = bound(amount, staked + 1, type(uint256).max);
        _stake(OPERATOR, staked);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.StakeTooSmall.selector, staked, amount));
        _unbond(OPERATOR, amount);
    }

    function test_startUnbonding_refusesNothing() public {
        _stake(OPERATOR, 1);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.AmountIsZero.selector));
        _unbond(OPERATOR, 0);
    }

    function testFuzz_withdraw_waitsForTheWholeDelay(uint256 waited) public {
        waited = bound(waited, 0, DELAY - 1);
        _stake(OPERATOR, MINIMUM);
        _unbond(OPERATOR, MINIMUM);
        uint64 ready = uint64(vm.getBlockTimestamp()) + DELAY;
        vm.warp(vm.getBlockTimestamp() + waited);
        vm.expectRevert(
            abi.encodeWithSelector(IOperatorRegistry.StillUnbonding.selector, ready, vm.getBlockTimestamp())
        );
        vm.prank(OPERATOR);
        registry.withdraw();
    }

    function test_withdraw_worksInTheFirstSecondAfterTheDelayAndNotBefore() public {
        _stake(OPERATOR, MINIMUM);
        _unbond(OPERATOR, MINIMUM);
        uint256 ready = vm.getBlockTimestamp() + DELAY;
        vm.warp(ready - 1);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.StillUnbonding.selector, ready, ready - 1));
        vm.prank(OPERATOR);
        registry.withdraw();
        vm.warp(ready);
        vm.prank(OPERATOR);
        registry.withdraw();
    }

    function testFuzz_withdraw_givesBackExactlyWhatUnbonded(uint256 staked, uint256 amount) public {
        staked = bound(staked, 1, RICH);
        amount = bound(amount, 1, staked);
        _stake(OPERATOR, staked);
        _unbond(OPERATOR, amount);
        vm.warp(vm.getBlockTimestamp() + DELAY);
        vm.expectEmit();
        emit IOperatorRegistry.Withdrawn(OPERATOR, amount);
        vm.prank(OPERATOR);
        registry.withdraw();

        assertEq(token.balanceOf(OPERATOR), RICH - staked + amount);
        assertEq(token.balanceOf(address(registry)), staked - amount);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NothingToWithdraw.selector, OPERATOR));
        vm.prank(OPERATOR);
        registry.withdraw();
    }

    function test_startUnbonding_againStartsTheDelayOfAllAnew() public {
        _stake(OPERATOR, 10);
        _unbond(OPERATOR, 4);
        vm.warp(vm.getBlockTimestamp() + DELAY - 1);
        _unbond(OPERATOR, 6);
        IOperatorRegistry.Operator memory operator = registry.operatorOf(OPERATOR);
        assertEq(operator.unbonding, 10);
        assertEq(operator.withdrawableAt, vm.getBlockTimestamp() + DELAY);
    }

    function test_withdraw_needsARegistration() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotRegistered.selector, OTHER));
        vm.prank(OTHER);
        registry.withdraw();
    }
}

contract OperatorRegistryPauseTest is RegistryTest {
    function setUp() public override {
        super.setUp();
        _register(OPERATOR, KEY);
        _stake(OPERATOR, MINIMUM);
    }

    function test_pause_stopsBeingActiveAndKeepsTheStake() public {
        vm.prank(OPERATOR);
        registry.pause();
        assertTrue(!registry.isActive(OPERATOR), "active while paused");
        assertEq(registry.operatorOf(OPERATOR).stake, MINIMUM);
        assertEq(registry.operatorCount(), 1);
        vm.prank(OPERATOR);
        registry.unpause();
        assertTrue(registry.isActive(OPERATOR), "not active after unpause");
    }

    function test_pause_andUnpauseRefuseWhatIsSoAlready() public {
        vm.startPrank(OPERATOR);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotPaused.selector, OPERATOR));
        registry.unpause();
        registry.pause();
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.AlreadyPaused.selector, OPERATOR));
        registry.pause();
        vm.stopPrank();
    }

    function test_pause_needsARegistration() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotRegistered.selector, OTHER));
        vm.prank(OTHER);
        registry.pause();
    }
}

contract OperatorRegistryListTest is RegistryTest {
    function testFuzz_pagesTogetherAreTheWholeList(uint256 offset, uint256 limit) public {
        _register(OPERATOR, KEY);
        _stake(OPERATOR, MINIMUM);
        _register(OTHER, OTHER_KEY);
        _stake(OTHER, MINIMUM);
        offset = bound(offset, 0, 4);
        limit = bound(limit, 0, 4);
        IOperatorRegistry.Operator[] memory page = registry.operators(offset, limit);
        uint256 left = offset < 2 ? 2 - offset : 0;
        assertEq(page.length, limit < left ? limit : left);
        for (uint256 i = 0; i < page.length; ++i) {
            assertEq(page[i].account, offset + i == 0 ? OPERATOR : OTHER);
        }
    }

    function test_aPageOfAnySizeDoesNotOverflow() public view {
        assertEq(registry.operators(type(uint256).max, type(uint256).max).length, 0);
    }

    function test_operatorOf_refusesAStranger() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotRegistered.selector, OTHER));
        registry.operatorOf(OTHER);
    }
}
