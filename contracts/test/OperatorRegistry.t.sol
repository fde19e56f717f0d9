// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {OperatorRegistry} from "../src/OperatorRegistry.sol";
import {QuorateToken} from "../src/QuorateToken.sol";
import {IOperatorRegistry} from "../src/interfaces/IOperatorRegistry.sol";
import {IQuorateToken} from "../src/interfaces/IQuorateToken.sol";
import {Test} from "./Test.sol";
import {FeeToken, HookToken} from "./Tokens.sol";

abstract contract RegistryTest is Test {
    address internal constant OPERATOR = address(0xA11CE);
    address internal constant OTHER = address(0xB0B);
    address internal constant KEY = address(0xCE1);
    address internal constant OTHER_KEY = address(0xCE2);
    address internal constant GOVERNANCE = address(0x60F);
    address internal constant SLASHER = address(0x51A54);
    address internal constant COURT = address(0xC0547);
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
        registry = new OperatorRegistry(token, MINIMUM, DELAY, GOVERNANCE);
        for (uint256 i = 0; i < 2; ++i) {
            vm.prank(i == 0 ? OPERATOR : OTHER);
            token.approve(address(registry), type(uint256).max);
        }
    }

    function _models(uint256 count) internal pure returns (IOperatorRegistry.Model[] memory models) {
        models = new IOperatorRegistry.Model[](count);
        for (uint256 i = 0; i < count; ++i) {
            models[i] = IOperatorRegistry.Model({
                name: string(abi.encodePacked("minilm", uint8(97 + i))),
                manifestHash: bytes32(i + 1),
                priceIn: uint128(10 * i),
                priceOut: uint128(20 * i)
            });
        }
    }

    function _offer(address key, uint256 models) internal pure returns (IOperatorRegistry.Offer memory) {
        return IOperatorRegistry.Offer({
            key: key, endpoint: ENDPOINT, region: "eu-west", deviceClass: "h200", capacity: 8, models: _models(models)
        });
    }

    function _text(uint256 length) internal pure returns (string memory) {
        return string(new bytes(length));
    }

    function _register(address operator, address key) internal {
        vm.prank(operator);
        registry.register(_offer(key, 1));
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
        new OperatorRegistry(token, 0, DELAY, GOVERNANCE);
    }

    function testFuzz_constructor_boundsTheDelay(uint64 delay) public {
        if (delay == 0 || delay > 90 days) {
            vm.expectRevert(
                abi.encodeWithSelector(IOperatorRegistry.UnbondingDelayOutOfRange.selector, delay, 1, 90 days)
            );
        }
        new OperatorRegistry(token, MINIMUM, delay, GOVERNANCE);
    }

    function test_constructor_takesNinetyDaysAndNotMoreOrNone() public {
        testFuzz_constructor_boundsTheDelay(90 days);
        testFuzz_constructor_boundsTheDelay(90 days + 1);
        testFuzz_constructor_boundsTheDelay(0);
    }

    function test_constructor_refusesNoGovernance() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.GovernanceIsZero.selector));
        new OperatorRegistry(token, MINIMUM, DELAY, address(0));
    }
}

contract OperatorRegistryRegisterTest is RegistryTest {
    function test_register_keepsWhatWasStatedAndEmits() public {
        vm.expectEmit();
        emit IOperatorRegistry.Registered(OPERATOR, KEY, ENDPOINT);
        vm.prank(OPERATOR);
        registry.register(_offer(KEY, 2));

        IOperatorRegistry.Operator memory operator = registry.operatorOf(OPERATOR);
        assertEq(operator.account, OPERATOR);
        assertEq(operator.key, KEY);
        assertEq(operator.endpoint, ENDPOINT);
        assertEq(operator.models.length, 2);
        assertEq(operator.models[1].name, "minilmb");
        assertEq(operator.models[1].manifestHash, bytes32(uint256(2)));
        assertEq(operator.models[1].priceIn, 10);
        assertEq(operator.models[1].priceOut, 20);
        assertEq(operator.region, "eu-west");
        assertEq(operator.deviceClass, "h200");
        assertEq(operator.capacity, 8);
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
        IOperatorRegistry.Offer memory offer = _offer(KEY, 1);
        offer.endpoint = _text(length);
        vm.prank(OPERATOR);
        registry.register(offer);
    }

    function testFuzz_register_boundsRegionAndClass(uint256 region, uint256 class) public {
        IOperatorRegistry.Offer memory offer = _offer(KEY, 1);
        (region, class) = (bound(region, 0, 40), bound(class, 0, 40));
        (offer.region, offer.deviceClass) = (_text(region), _text(class));
        if (region > 31) {
            vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.RegionLength.selector, region, 31));
        } else if (class == 0 || class > 31) {
            vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.DeviceClassLength.selector, class, 31));
        }
        vm.prank(OPERATOR);
        registry.register(offer);
    }

    function test_register_refusesACapacityOfNothing() public {
        IOperatorRegistry.Offer memory offer = _offer(KEY, 1);
        offer.capacity = 0;
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.CapacityIsZero.selector));
        vm.prank(OPERATOR);
        registry.register(offer);
    }

    function testFuzz_register_refusesAModelTwice(uint256 count, uint256 twice) public {
        count = bound(count, 2, 16);
        twice = bound(twice, 1, count - 1);
        IOperatorRegistry.Offer memory offer = _offer(KEY, count);
        offer.models[twice].name = offer.models[twice / 2].name;
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.ModelTwice.selector, offer.models[twice].name));
        vm.prank(OPERATOR);
        registry.register(offer);
    }

    function testFuzz_register_boundsTheModels(uint256 count) public {
        count = bound(count, 0, 40);
        if (count == 0 || count > 16) {
            vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.ModelCount.selector, count, 16));
        }
        vm.prank(OPERATOR);
        registry.register(_offer(KEY, count));
    }

    function testFuzz_register_boundsAModelsName(uint256 length) public {
        length = bound(length, 0, 200);
        IOperatorRegistry.Offer memory offer = _offer(KEY, 1);
        offer.models[0].name = _text(length);
        if (length == 0 || length > 64) {
            vm.expectRevert(
                abi.encodeWithSelector(IOperatorRegistry.ModelNameLength.selector, offer.models[0].name, 64)
            );
        }
        vm.prank(OPERATOR);
        registry.register(offer);
    }

    function test_register_refusesAModelWithoutAHash() public {
        IOperatorRegistry.Offer memory offer = _offer(KEY, 1);
        offer.models[0].manifestHash = 0;
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.ModelHashIsZero.selector, "minilma"));
        vm.prank(OPERATOR);
        registry.register(offer);
    }
}

contract OperatorRegistryUpdateTest is RegistryTest {
    function test_update_replacesKeyEndpointAndModels() public {
        _register(OPERATOR, KEY);
        IOperatorRegistry.Offer memory offer = _offer(OTHER_KEY, 3);
        (offer.endpoint, offer.region, offer.deviceClass, offer.capacity) = ("http://new", "", "cpu", 1);
        vm.expectEmit();
        emit IOperatorRegistry.Updated(OPERATOR, OTHER_KEY, "http://new");
        vm.prank(OPERATOR);
        registry.update(offer);

        IOperatorRegistry.Operator memory operator = registry.operatorOf(OPERATOR);
        assertEq(operator.key, OTHER_KEY);
        assertEq(operator.endpoint, "http://new");
        assertEq(operator.region, "");
        assertEq(operator.deviceClass, "cpu");
        assertEq(operator.capacity, 1);
        assertEq(operator.models.length, 3);
        assertEq(operator.models[2].priceOut, 40);
    }

    function test_update_leavesTheOldKeyWithItsOperator() public {
        _register(OPERATOR, KEY);
        vm.prank(OPERATOR);
        registry.update(_offer(OTHER_KEY, 1));
        assertEq(registry.accountOf(KEY), OPERATOR);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.KeyTaken.selector, KEY, OPERATOR));
        _register(OTHER, KEY);
        vm.prank(OPERATOR);
        registry.update(_offer(KEY, 1));
        assertEq(registry.operatorOf(OPERATOR).key, KEY);
    }

    function test_update_needsARegistration() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotRegistered.selector, OPERATOR));
        vm.prank(OPERATOR);
        registry.update(_offer(KEY, 1));
    }
}

contract OperatorRegistryPriceTest is RegistryTest {
    function testFuzz_setPrice_changesThatModelAlone(uint256 which, uint128 priceIn, uint128 priceOut) public {
        which = bound(which, 0, 3);
        vm.prank(OPERATOR);
        registry.register(_offer(KEY, 4));
        IOperatorRegistry.Model[] memory models = _models(4);
        vm.expectEmit();
        emit IOperatorRegistry.PriceSet(OPERATOR, models[which].name, priceIn, priceOut);
        vm.prank(OPERATOR);
        registry.setPrice(models[which].name, priceIn, priceOut);
        (models[which].priceIn, models[which].priceOut) = (priceIn, priceOut);
        assertEq(keccak256(abi.encode(registry.operatorOf(OPERATOR).models)), keccak256(abi.encode(models)));
    }

    function test_setPrice_ofAModelThatIsNotServedIsRefused() public {
        _register(OPERATOR, KEY);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.ModelNotServed.selector, "other"));
        vm.prank(OPERATOR);
        registry.setPrice("other", 1, 1);
    }

    function test_setPrice_needsARegistration() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotRegistered.selector, OPERATOR));
        vm.prank(OPERATOR);
        registry.setPrice("minilma", 1, 1);
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

    function test_stake_refusesATokenThatTakesAFee() public {
        FeeToken fees = new FeeToken(OPERATOR, 1000);
        registry = new OperatorRegistry(fees, MINIMUM, DELAY, GOVERNANCE);
        _register(OPERATOR, KEY);
        vm.prank(OPERATOR);
        fees.approve(address(registry), 1000);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.ReceivedOtherAmount.selector, 990, 1000));
        _stake(OPERATOR, 1000);
    }

    function test_aTokenThatCallsBackGetsNothingMore() public {
        HookToken hooks = new HookToken(OPERATOR, 1000);
        registry = new OperatorRegistry(hooks, MINIMUM, DELAY, GOVERNANCE);
        vm.prank(GOVERNANCE);
        registry.setSlasher(address(hooks)); // so that the guard alone can be why its call back of `slash` is refused
        _register(OPERATOR, KEY);
        vm.prank(OPERATOR);
        hooks.approve(address(registry), 1000);
        bytes[3] memory calls = [
            abi.encodeCall(registry.stake, (1)),
            abi.encodeCall(registry.withdraw, ()),
            abi.encodeCall(registry.slash, (OPERATOR, 1, COURT, 0))
        ];
        bytes32 refused =
            keccak256(abi.encodeWithSelector(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector));
        for (uint256 i = 0; i < calls.length; ++i) {
            hooks.callOnTransfer(address(registry), calls[i]);
            _stake(OPERATOR, 10);
            assertTrue(!hooks.callSucceeded(), "a call from within a transfer went through");
            assertEq(keccak256(hooks.answer()), refused);
        }
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

contract OperatorRegistrySlashTest is RegistryTest {
    bytes32 internal constant EVIDENCE = bytes32(uint256(0xE71D));

    function setUp() public override {
        super.setUp();
        _register(OPERATOR, KEY);
        _stake(OPERATOR, 10 * MINIMUM);
        vm.prank(GOVERNANCE);
        registry.setSlasher(SLASHER);
    }

    function _slash(uint256 amount) private returns (uint256) {
        vm.prank(SLASHER);
        return registry.slash(OPERATOR, amount, COURT, EVIDENCE);
    }

    function _hold(uint256 until) private {
        vm.prank(SLASHER);
        registry.hold(OPERATOR, uint64(until));
    }

    function test_aNewRegistryHasNoSlasher() public {
        OperatorRegistry fresh = new OperatorRegistry(token, MINIMUM, DELAY, GOVERNANCE);
        assertEq(fresh.slasher(), address(0));
        assertEq(fresh.governance(), GOVERNANCE);
    }

    /// @dev Every function that not everybody may call, and who may.
    function testFuzz_privilegesAreWhatIsWrittenHere(address caller) public {
        vm.startPrank(caller);
        if (caller != GOVERNANCE) {
            vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotGovernance.selector, caller, GOVERNANCE));
            registry.setSlasher(caller);
        }
        if (caller != SLASHER) {
            vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotSlasher.selector, caller, SLASHER));
            registry.hold(OPERATOR, 0);
            vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotSlasher.selector, caller, SLASHER));
            registry.slash(OPERATOR, 1, COURT, EVIDENCE);
        }
        vm.stopPrank();
    }

    function test_noRoleMayDoWhatIsAnothers() public {
        testFuzz_privilegesAreWhatIsWrittenHere(GOVERNANCE);
        testFuzz_privilegesAreWhatIsWrittenHere(OPERATOR);
        testFuzz_privilegesAreWhatIsWrittenHere(SLASHER); // which may do that, but not name its successor
        testFuzz_privilegesAreWhatIsWrittenHere(address(0));
    }

    function test_setSlasher_takesTheRoleAway() public {
        vm.expectEmit();
        emit IOperatorRegistry.SlasherSet(address(0));
        vm.prank(GOVERNANCE);
        registry.setSlasher(address(0));
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotSlasher.selector, SLASHER, address(0)));
        _slash(1);
    }

    function testFuzz_slash_takesStakeFirstThenWhatIsUnbonding(uint256 unbonding, uint256 amount) public {
        unbonding = bound(unbonding, 0, 10 * MINIMUM);
        amount = bound(amount, 1, 12 * MINIMUM);
        if (unbonding != 0) _unbond(OPERATOR, unbonding);
        uint256 staked = 10 * MINIMUM - unbonding;
        uint256 fromStake = amount < staked ? amount : staked;
        uint256 expected = amount < 10 * MINIMUM ? amount : 10 * MINIMUM;
        vm.expectEmit();
        emit IOperatorRegistry.Slashed(OPERATOR, expected, staked - fromStake, COURT, EVIDENCE);
        assertEq(_slash(amount), expected);

        IOperatorRegistry.Operator memory operator = registry.operatorOf(OPERATOR);
        assertEq(operator.stake, staked - fromStake);
        assertEq(operator.unbonding, unbonding - (expected - fromStake));
        assertEq(token.balanceOf(COURT), expected);
        assertEq(token.balanceOf(address(registry)), 10 * MINIMUM - expected);
        assertTrue(registry.isActive(OPERATOR) == (operator.stake >= MINIMUM), "listed exactly by what is left");
    }

    function test_slash_unlistsWhoFallsUnderTheMinimum() public {
        _slash(9 * MINIMUM);
        assertTrue(registry.isActive(OPERATOR), "the minimum is left");
        _slash(1);
        assertTrue(!registry.isActive(OPERATOR), "less than the minimum is left");
        assertEq(registry.operatorCount(), 0);
    }

    function test_slash_takesNothingOfOthers() public {
        _register(OTHER, OTHER_KEY);
        _stake(OTHER, MINIMUM);
        assertEq(_slash(type(uint256).max), 10 * MINIMUM);
        assertEq(registry.operatorOf(OTHER).stake, MINIMUM);
        assertEq(token.balanceOf(address(registry)), MINIMUM);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NothingToSlash.selector, OPERATOR));
        _slash(1);
    }

    function test_slash_refusesNothingAStrangerAndNobody() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.AmountIsZero.selector));
        _slash(0);
        vm.startPrank(SLASHER);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotRegistered.selector, OTHER));
        registry.slash(OTHER, 1, COURT, EVIDENCE);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.RecipientNotAllowed.selector, address(0)));
        registry.slash(OPERATOR, 1, address(0), EVIDENCE);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.RecipientNotAllowed.selector, address(registry)));
        registry.slash(OPERATOR, 1, address(registry), EVIDENCE);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotRegistered.selector, OTHER));
        registry.hold(OTHER, 0);
        vm.stopPrank();
    }

    function test_hold_keepsWhatIsUnbondingUntilItEnds() public {
        _unbond(OPERATOR, MINIMUM);
        uint256 start = vm.getBlockTimestamp();
        vm.warp(start + DELAY - 1);
        uint256 until = start + DELAY + 10 days;
        vm.expectEmit();
        emit IOperatorRegistry.Held(OPERATOR, uint64(until));
        _hold(until);
        assertEq(registry.releasedAt(OPERATOR), until);
        vm.warp(until - 1);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.StillUnbonding.selector, until, until - 1));
        vm.prank(OPERATOR);
        registry.withdraw();
        vm.warp(until);
        vm.prank(OPERATOR);
        registry.withdraw();
        assertEq(token.balanceOf(OPERATOR), RICH - 9 * MINIMUM);
    }

    function test_hold_doesNotShortenTheDelayAndCanBeLifted() public {
        _unbond(OPERATOR, MINIMUM);
        uint256 ready = vm.getBlockTimestamp() + DELAY;
        _hold(vm.getBlockTimestamp() + 1);
        assertEq(registry.releasedAt(OPERATOR), ready);
        _hold(vm.getBlockTimestamp() + 20 days);
        assertTrue(registry.releasedAt(OPERATOR) > ready, "held");
        _hold(0);
        assertEq(registry.releasedAt(OPERATOR), ready);
        assertEq(registry.operatorOf(OPERATOR).heldUntil, 0);
    }

    /// @dev Owners can always leave: a slasher that holds again and again wins 30 days and no more.
    function testFuzz_hold_endsThirtyDaysAfterTheDelayWhateverTheSlasherDoes(uint256 step) public {
        step = bound(step, 1 days, 30 days);
        _unbond(OPERATOR, MINIMUM);
        uint256 end = vm.getBlockTimestamp() + DELAY + 30 days;
        while (vm.getBlockTimestamp() < end) {
            _hold(vm.getBlockTimestamp() + 30 days);
            uint256 next = vm.getBlockTimestamp() + step;
            vm.warp(next < end ? next : end);
        }
        _hold(vm.getBlockTimestamp() + 30 days);
        assertEq(registry.releasedAt(OPERATOR), end);
        vm.prank(OPERATOR);
        registry.withdraw();
    }

    function test_hold_isBounded() public {
        uint256 latest = vm.getBlockTimestamp() + 30 days;
        _hold(latest);
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.HoldTooLong.selector, latest + 1, latest));
        _hold(latest + 1);
    }

    function test_whatIsHeldCanBeSlashed() public {
        _unbond(OPERATOR, 10 * MINIMUM);
        vm.warp(vm.getBlockTimestamp() + DELAY - 1);
        _hold(vm.getBlockTimestamp() + 5 days);
        vm.warp(vm.getBlockTimestamp() + 4 days);
        assertEq(_slash(4 * MINIMUM), 4 * MINIMUM);
        vm.warp(vm.getBlockTimestamp() + 1 days);
        vm.prank(OPERATOR);
        registry.withdraw();
        assertEq(token.balanceOf(OPERATOR), RICH - 4 * MINIMUM);
    }

    function test_releasedAt_ofAStrangerIsRefused() public {
        vm.expectRevert(abi.encodeWithSelector(IOperatorRegistry.NotRegistered.selector, OTHER));
        registry.releasedAt(OTHER);
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
