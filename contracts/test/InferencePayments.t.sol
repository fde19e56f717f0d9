// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {InferencePayments} from "../src/InferencePayments.sol";
import {QuorateToken} from "../src/QuorateToken.sol";
import {IInferencePayments} from "../src/interfaces/IInferencePayments.sol";
import {IQuorateToken} from "../src/interfaces/IQuorateToken.sol";
import {Test} from "./Test.sol";
import {FeeToken, HookToken, SilentToken} from "./Tokens.sol";

abstract contract PaymentsTest is Test {
    uint256 internal constant PAYER_KEY = 0xA11CE;
    uint256 internal constant OTHER_KEY = 0xB0B;
    address internal constant OPERATOR = address(0x09E7A702);
    address internal constant OTHER_OPERATOR = address(0x09E7A703);
    uint256 internal constant RICH = 1e30;
    uint64 internal constant DELAY = 1 days;
    uint64 internal constant START = 1_900_000_000;

    address internal payer = vm.addr(PAYER_KEY);
    address internal other = vm.addr(OTHER_KEY);
    QuorateToken internal token;
    InferencePayments internal payments;

    function setUp() public virtual {
        vm.warp(START);
        IQuorateToken.Allocation[] memory allocations = new IQuorateToken.Allocation[](2);
        allocations[0] = IQuorateToken.Allocation({account: payer, amount: RICH});
        allocations[1] = IQuorateToken.Allocation({account: other, amount: RICH});
        token = new QuorateToken(allocations);
        payments = new InferencePayments(token, DELAY);
        for (uint256 i = 0; i < 2; ++i) {
            vm.prank(allocations[i].account);
            token.approve(address(payments), type(uint256).max);
        }
    }

    function _deposit(uint256 amount) internal {
        vm.prank(payer);
        payments.deposit(payer, OPERATOR, amount);
    }

    function _voucher(uint128 total) internal view returns (IInferencePayments.Voucher memory) {
        return IInferencePayments.Voucher({
            payer: payer,
            operator: OPERATOR,
            epoch: payments.channelOf(payer, OPERATOR).epoch,
            total: total,
            units: 7,
            receiptHash: bytes32(uint256(0x5EC)),
            expiry: START + 365 days
        });
    }

    function _sign(uint256 key, IInferencePayments.Voucher memory voucher) internal view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, payments.digestOf(voucher));
        return abi.encodePacked(r, s, v);
    }

    function _redeem(uint128 total) internal {
        IInferencePayments.Voucher memory voucher = _voucher(total);
        payments.redeem(voucher, _sign(PAYER_KEY, voucher));
    }

    /// @dev The next redemption of this voucher must be refused like this, and nothing must move.
    function _expectRefusal(
        IInferencePayments.Voucher memory voucher,
        bytes memory signature,
        IInferencePayments.Refusal why,
        uint256 stated,
        uint256 known
    ) internal {
        uint256 held = token.balanceOf(address(payments));
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.VoucherRefused.selector, why, stated, known));
        payments.redeem(voucher, signature);
        assertEq(token.balanceOf(address(payments)), held);
    }

    /// @dev Redeeming fails, because the payer has not signed this (whoever the signature is of by chance).
    function _assertNotSigned(
        InferencePayments place,
        IInferencePayments.Voucher memory voucher,
        bytes memory signature
    ) internal {
        try place.redeem(voucher, signature) {
            assertTrue(false, "it was paid");
        } catch (bytes memory reason) {
            bytes4 selector;
            uint256 why;
            assembly ("memory-safe") {
                selector := mload(add(reason, 0x20))
                why := mload(add(reason, 0x24))
            }
            assertTrue(selector == IInferencePayments.VoucherRefused.selector, "another error");
            assertEq(why, uint256(IInferencePayments.Refusal.NotSigned));
        }
    }

    function _close() internal {
        vm.startPrank(payer);
        payments.startClose(OPERATOR);
        vm.warp(vm.getBlockTimestamp() + DELAY);
        payments.close(OPERATOR);
        vm.stopPrank();
    }
}

contract InferencePaymentsDeployTest is PaymentsTest {
    function test_constructor_refusesATokenThatIsNoContract() public {
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.TokenHasNoCode.selector, OPERATOR));
        new InferencePayments(IERC20(OPERATOR), DELAY);
    }

    function testFuzz_constructor_boundsTheDelay(uint64 delay) public {
        bool wrong = delay == 0 || delay > 30 days;
        if (wrong) {
            vm.expectRevert(abi.encodeWithSelector(IInferencePayments.CloseDelayOutOfRange.selector, delay, 1, 30 days));
        }
        InferencePayments made = new InferencePayments(token, delay);
        if (!wrong) assertEq(made.closeDelay(), delay);
    }

    function test_constructor_takesADelayOfExactlyThirtyDaysAndNotMore() public {
        assertEq(new InferencePayments(token, 30 days).closeDelay(), 30 days);
        vm.expectRevert(
            abi.encodeWithSelector(IInferencePayments.CloseDelayOutOfRange.selector, 30 days + 1, 1, 30 days)
        );
        new InferencePayments(token, 30 days + 1);
    }
}

contract InferencePaymentsDepositTest is PaymentsTest {
    function testFuzz_deposit_takesExactlyTheAmount(uint128 first, uint128 second) public {
        first = uint128(bound(first, 1, RICH / 2));
        second = uint128(bound(second, 1, RICH / 2));
        _deposit(first);
        vm.expectEmit();
        emit IInferencePayments.Deposited(payer, OPERATOR, 0, second, uint256(first) + second, payer);
        _deposit(second);

        IInferencePayments.Channel memory channel = payments.channelOf(payer, OPERATOR);
        assertEq(channel.deposited, uint256(first) + second);
        assertEq(channel.claimed, 0);
        assertEq(token.balanceOf(address(payments)), uint256(first) + second);
        assertEq(payments.channelOf(payer, OTHER_OPERATOR).deposited, 0);
    }

    function test_deposit_forAnotherIsThatOnesMoney() public {
        vm.expectEmit();
        emit IInferencePayments.Deposited(payer, OPERATOR, 0, 10, 10, other);
        vm.prank(other);
        payments.deposit(payer, OPERATOR, 10);
        assertEq(payments.channelOf(payer, OPERATOR).deposited, 10);
        assertEq(token.balanceOf(other), RICH - 10);
        _close();
        assertEq(token.balanceOf(payer), RICH + 10);
    }

    function test_deposit_refusesNothing() public {
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.AmountIsZero.selector));
        _deposit(0);
    }

    function test_deposit_refusesPartiesWhoseMoneyCouldNotLeave() public {
        address[2] memory parties = [address(0), address(payments)];
        vm.startPrank(payer);
        for (uint256 i = 0; i < 2; ++i) {
            vm.expectRevert(abi.encodeWithSelector(IInferencePayments.PartyNotAllowed.selector, parties[i]));
            payments.deposit(parties[i], OPERATOR, 1);
            vm.expectRevert(abi.encodeWithSelector(IInferencePayments.PartyNotAllowed.selector, parties[i]));
            payments.deposit(payer, parties[i], 1);
        }
        vm.stopPrank();
    }

    function test_deposit_refusesWhatDoesNotFit() public {
        IQuorateToken.Allocation[] memory allocations = new IQuorateToken.Allocation[](1);
        allocations[0] = IQuorateToken.Allocation({account: payer, amount: type(uint208).max});
        QuorateToken huge = new QuorateToken(allocations);
        InferencePayments place = new InferencePayments(huge, DELAY);
        uint256 largest = type(uint128).max;
        vm.startPrank(payer);
        huge.approve(address(place), type(uint256).max);
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.AmountTooLarge.selector, largest + 1, largest));
        place.deposit(payer, OPERATOR, largest + 1);
        place.deposit(payer, OPERATOR, largest - 4);
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.AmountTooLarge.selector, 5, 4));
        place.deposit(payer, OPERATOR, 5);
        place.deposit(payer, OPERATOR, 4);
        assertEq(place.channelOf(payer, OPERATOR).deposited, largest);
        vm.stopPrank();
    }

    function test_deposit_isRefusedWhileTheChannelCloses() public {
        _deposit(10);
        vm.prank(payer);
        payments.startClose(OPERATOR);
        vm.expectRevert(
            abi.encodeWithSelector(IInferencePayments.ChannelIsClosing.selector, payer, OPERATOR, START + DELAY)
        );
        vm.prank(other);
        payments.deposit(payer, OPERATOR, 1);
    }

    function test_depositWithPermit_needsNoApprovalBefore() public {
        vm.prank(payer);
        token.approve(address(payments), 0);
        (uint8 v, bytes32 r, bytes32 s) = _permit(25, START);
        vm.prank(payer);
        payments.depositWithPermit(OPERATOR, 25, START, v, r, s);
        assertEq(payments.channelOf(payer, OPERATOR).deposited, 25);
    }

    function test_depositWithPermit_worksWhenSomebodyUsedThePermitFirst() public {
        vm.prank(payer);
        token.approve(address(payments), 0);
        (uint8 v, bytes32 r, bytes32 s) = _permit(25, START);
        token.permit(payer, address(payments), 25, START, v, r, s);
        vm.prank(payer);
        payments.depositWithPermit(OPERATOR, 25, START, v, r, s);
        assertEq(payments.channelOf(payer, OPERATOR).deposited, 25);
    }

    function test_depositWithPermit_takesNothingByAPermitThatIsNone() public {
        vm.prank(payer);
        token.approve(address(payments), 0);
        (uint8 v, bytes32 r, bytes32 s) = _permit(25, START);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(payments), 0, 26)
        );
        vm.prank(payer);
        payments.depositWithPermit(OPERATOR, 26, START, v, r, s);
        assertEq(token.balanceOf(payer), RICH);
    }

    function _permit(uint256 amount, uint256 deadline) private view returns (uint8 v, bytes32 r, bytes32 s) {
        bytes32 permit = keccak256(
            abi.encode(
                keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"),
                payer,
                address(payments),
                amount,
                token.nonces(payer),
                deadline
            )
        );
        return vm.sign(PAYER_KEY, keccak256(abi.encodePacked("\x19\x01", token.DOMAIN_SEPARATOR(), permit)));
    }
}

contract InferencePaymentsRedeemTest is PaymentsTest {
    function testFuzz_redeem_paysWhatIsNew(uint128 deposited, uint128 first, uint128 second) public {
        deposited = uint128(bound(deposited, 2, RICH));
        first = uint128(bound(first, 1, deposited - 1));
        second = uint128(bound(second, first + 1, deposited));
        _deposit(deposited);
        _redeem(first);
        assertEq(token.balanceOf(OPERATOR), first);
        vm.expectEmit();
        emit IInferencePayments.Redeemed(payer, OPERATOR, 0, second - first, second, 7, bytes32(uint256(0x5EC)));
        _redeem(second);

        assertEq(token.balanceOf(OPERATOR), second);
        assertEq(token.balanceOf(address(payments)), deposited - second);
        assertEq(payments.channelOf(payer, OPERATOR).claimed, second);
    }

    function test_redeem_paysTheOperatorWhoeverSendsIt() public {
        _deposit(10);
        IInferencePayments.Voucher memory voucher = _voucher(10);
        bytes memory signature = _sign(PAYER_KEY, voucher);
        vm.prank(other);
        payments.redeem(voucher, signature);
        assertEq(token.balanceOf(OPERATOR), 10);
        assertEq(token.balanceOf(other), RICH);
    }

    function testFuzz_redeem_neverPaysTwiceAndNeverBackwards(uint128 total, uint128 later) public {
        total = uint128(bound(total, 1, RICH));
        later = uint128(bound(later, 0, total));
        _deposit(RICH);
        _redeem(total);
        IInferencePayments.Voucher memory voucher = _voucher(later);
        _expectRefusal(voucher, _sign(PAYER_KEY, voucher), IInferencePayments.Refusal.NothingNew, later, total);
    }

    function testFuzz_redeem_paysAllOrNothing(uint128 deposited, uint128 total) public {
        deposited = uint128(bound(deposited, 1, RICH - 1));
        total = uint128(bound(total, deposited + 1, RICH));
        _deposit(deposited);
        IInferencePayments.Voucher memory voucher = _voucher(total);
        bytes memory signature = _sign(PAYER_KEY, voucher);
        _expectRefusal(voucher, signature, IInferencePayments.Refusal.NotCovered, total, deposited);
        _deposit(total - deposited);
        payments.redeem(voucher, signature);
        assertEq(token.balanceOf(OPERATOR), total);
    }

    function test_redeem_worksInTheLastSecondBeforeExpiryAndNotAfter() public {
        _deposit(10);
        IInferencePayments.Voucher memory voucher = _voucher(4);
        voucher.expiry = START + 5;
        vm.warp(START + 5);
        payments.redeem(voucher, _sign(PAYER_KEY, voucher));
        voucher.total = 5;
        vm.warp(START + 6);
        _expectRefusal(voucher, _sign(PAYER_KEY, voucher), IInferencePayments.Refusal.Expired, START + 5, START + 6);
    }

    function testFuzz_redeem_refusesTheSignatureOfAnother(uint256 key) public {
        key = bound(key, 1, 1e60);
        if (key == PAYER_KEY) ++key;
        _deposit(10);
        IInferencePayments.Voucher memory voucher = _voucher(4);
        _expectRefusal(
            voucher, _sign(key, voucher), IInferencePayments.Refusal.NotSigned, uint160(payer), uint160(vm.addr(key))
        );
    }

    function testFuzz_redeem_refusesAVoucherOfWhichAnythingWasChanged(uint256 field, uint256 value) public {
        _deposit(1000);
        vm.prank(payer);
        payments.deposit(payer, OTHER_OPERATOR, 1000);
        vm.prank(payer);
        payments.deposit(other, OPERATOR, 1000);
        IInferencePayments.Voucher memory voucher = _voucher(10);
        bytes memory signature = _sign(PAYER_KEY, voucher);
        field = bound(field, 0, 5);
        if (field == 0) voucher.payer = other;
        else if (field == 1) voucher.operator = OTHER_OPERATOR;
        else if (field == 2) voucher.total = uint128(bound(value, 11, 1000));
        else if (field == 3) voucher.units = uint64(bound(value, 8, type(uint64).max));
        else if (field == 4) voucher.receiptHash = bytes32(bound(value, 0x5ED, type(uint256).max));
        else voucher.expiry += uint64(bound(value, 1, 365 days));
        _assertNotSigned(payments, voucher, signature);
        assertEq(token.balanceOf(OPERATOR) + token.balanceOf(OTHER_OPERATOR), 0);
    }

    function testFuzz_redeem_refusesBytesThatAreNoSignature(bytes memory signature) public {
        _deposit(10);
        IInferencePayments.Voucher memory voucher = _voucher(4);
        if (signature.length == 65) signature = abi.encodePacked(signature, uint8(0));
        _expectRefusal(voucher, signature, IInferencePayments.Refusal.NotSigned, uint160(payer), 0);
    }

    function test_redeem_refusesTheOtherFormOfASignature() public {
        _deposit(10);
        IInferencePayments.Voucher memory voucher = _voucher(4);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, payments.digestOf(voucher));
        bytes32 high = bytes32(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 - uint256(s));
        _expectRefusal(
            voucher,
            abi.encodePacked(r, high, v == 27 ? 28 : 27),
            IInferencePayments.Refusal.NotSigned,
            uint160(payer),
            0
        );
    }

    function test_redeem_refusesAVoucherOfAnotherContractOrChain() public {
        _deposit(10);
        InferencePayments twin = new InferencePayments(token, DELAY);
        IInferencePayments.Voucher memory voucher = _voucher(4);
        bytes memory signature = _sign(PAYER_KEY, voucher);
        vm.startPrank(payer);
        token.approve(address(twin), 10);
        twin.deposit(payer, OPERATOR, 10);
        vm.stopPrank();
        _assertNotSigned(twin, voucher, signature);
        vm.chainId(424242);
        _assertNotSigned(payments, voucher, signature);
        assertEq(token.balanceOf(OPERATOR), 0);
    }

    function test_redeem_refusesAPayerZeroThatNoSignatureIsOf() public {
        IInferencePayments.Voucher memory voucher = _voucher(4);
        voucher.payer = address(0);
        _expectRefusal(voucher, "", IInferencePayments.Refusal.NotCovered, 4, 0);
    }

    function test_redeem_worksUntilTheChannelIsReallyClosed() public {
        _deposit(10);
        vm.startPrank(payer);
        payments.startClose(OPERATOR);
        vm.stopPrank();
        _redeem(3);
        vm.warp(START + DELAY + 100);
        _redeem(8);
        vm.prank(payer);
        payments.close(OPERATOR);
        assertEq(token.balanceOf(OPERATOR), 8);
        assertEq(token.balanceOf(payer), RICH - 8);
    }

    function test_aVoucherOfAnEarlierEpochIsWorthNothing() public {
        _deposit(10);
        IInferencePayments.Voucher memory old = _voucher(10);
        bytes memory signature = _sign(PAYER_KEY, old);
        _close();
        _deposit(10);
        _expectRefusal(old, signature, IInferencePayments.Refusal.OtherEpoch, 0, 1);
        _redeem(10);
        assertEq(token.balanceOf(OPERATOR), 10);
    }

    function test_aVoucherOfALaterEpochWaitsForIt() public {
        _deposit(10);
        IInferencePayments.Voucher memory voucher = _voucher(4);
        voucher.epoch = 1;
        _expectRefusal(voucher, _sign(PAYER_KEY, voucher), IInferencePayments.Refusal.OtherEpoch, 1, 0);
    }

    function test_theDigestIsWhatEip712Says() public view {
        IInferencePayments.Voucher memory voucher = _voucher(4);
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Quorate payments"),
                keccak256("1"),
                block.chainid,
                address(payments)
            )
        );
        bytes32 struct_ = keccak256(
            abi.encode(
                keccak256(
                    "Voucher(address payer,address operator,uint64 epoch,uint128 total,uint64 units,bytes32 receiptHash,uint64 expiry)"
                ),
                payer,
                OPERATOR,
                0,
                4,
                7,
                0x5EC,
                START + 365 days
            )
        );
        assertEq(payments.digestOf(voucher), keccak256(abi.encodePacked("\x19\x01", domain, struct_)));
    }
}

contract InferencePaymentsBatchTest is PaymentsTest {
    function setUp() public override {
        super.setUp();
        _deposit(100);
        vm.prank(other);
        payments.deposit(other, OPERATOR, 100);
    }

    function _two(uint128 first, uint128 second)
        private
        view
        returns (IInferencePayments.Voucher[] memory vouchers, bytes[] memory signatures)
    {
        vouchers = new IInferencePayments.Voucher[](2);
        signatures = new bytes[](2);
        (vouchers[0], vouchers[1]) = (_voucher(first), _voucher(second));
        vouchers[1].payer = other;
        (signatures[0], signatures[1]) = (_sign(PAYER_KEY, vouchers[0]), _sign(OTHER_KEY, vouchers[1]));
    }

    function testFuzz_redeemMany_paysTheSum(uint128 first, uint128 second) public {
        first = uint128(bound(first, 1, 100));
        second = uint128(bound(second, 1, 100));
        (IInferencePayments.Voucher[] memory vouchers, bytes[] memory signatures) = _two(first, second);
        vm.expectEmit();
        emit IInferencePayments.Redeemed(payer, OPERATOR, 0, first, first, 7, bytes32(uint256(0x5EC)));
        vm.expectEmit();
        emit IInferencePayments.Redeemed(other, OPERATOR, 0, second, second, 7, bytes32(uint256(0x5EC)));
        vm.expectEmit();
        emit IERC20.Transfer(address(payments), OPERATOR, uint256(first) + second);
        payments.redeemMany(OPERATOR, vouchers, signatures);
        assertEq(token.balanceOf(OPERATOR), uint256(first) + second);
        assertEq(payments.channelOf(payer, OPERATOR).claimed, first);
        assertEq(payments.channelOf(other, OPERATOR).claimed, second);
    }

    function test_redeemMany_passesOverWhatItCannotPay() public {
        (IInferencePayments.Voucher[] memory vouchers, bytes[] memory signatures) = _two(101, 50);
        vm.expectEmit();
        emit IInferencePayments.Refused(payer, OPERATOR, IInferencePayments.Refusal.NotCovered, 101, 100);
        payments.redeemMany(OPERATOR, vouchers, signatures);
        assertEq(token.balanceOf(OPERATOR), 50);
    }

    function test_redeemMany_paysTheSameVoucherOnce() public {
        (IInferencePayments.Voucher[] memory vouchers, bytes[] memory signatures) = _two(40, 50);
        (vouchers[1], signatures[1]) = (vouchers[0], signatures[0]);
        vm.expectEmit();
        emit IInferencePayments.Refused(payer, OPERATOR, IInferencePayments.Refusal.NothingNew, 40, 40);
        payments.redeemMany(OPERATOR, vouchers, signatures);
        assertEq(token.balanceOf(OPERATOR), 40);
    }

    function test_redeemMany_sendsNobodyTheMoneyOfAnother() public {
        (IInferencePayments.Voucher[] memory vouchers, bytes[] memory signatures) = _two(40, 50);
        vm.prank(payer);
        payments.deposit(payer, OTHER_OPERATOR, 100);
        vouchers[0].operator = OTHER_OPERATOR;
        signatures[0] = _sign(PAYER_KEY, vouchers[0]);
        vm.expectEmit();
        emit IInferencePayments.Refused(
            payer, OPERATOR, IInferencePayments.Refusal.OtherOperator, uint160(OTHER_OPERATOR), uint160(OPERATOR)
        );
        payments.redeemMany(OPERATOR, vouchers, signatures);
        assertEq(token.balanceOf(OPERATOR), 50);
        assertEq(payments.channelOf(payer, OTHER_OPERATOR).claimed, 0);
    }

    function test_redeemMany_revertsIfNothingIsPaid() public {
        (IInferencePayments.Voucher[] memory vouchers, bytes[] memory signatures) = _two(40, 50);
        payments.redeemMany(OPERATOR, vouchers, signatures);
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.NothingRedeemed.selector, 2));
        payments.redeemMany(OPERATOR, vouchers, signatures);
    }

    function test_redeemMany_needsASignatureForEach() public {
        (IInferencePayments.Voucher[] memory vouchers,) = _two(40, 50);
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.SignatureCount.selector, 1, 2));
        payments.redeemMany(OPERATOR, vouchers, new bytes[](1));
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.SignatureCount.selector, 3, 2));
        payments.redeemMany(OPERATOR, vouchers, new bytes[](3));
    }

    function test_redeemMany_boundsTheBatch() public {
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.VoucherCount.selector, 0, 256));
        payments.redeemMany(OPERATOR, new IInferencePayments.Voucher[](0), new bytes[](0));
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.VoucherCount.selector, 257, 256));
        payments.redeemMany(OPERATOR, new IInferencePayments.Voucher[](257), new bytes[](257));
        IInferencePayments.Voucher[] memory vouchers = new IInferencePayments.Voucher[](256);
        bytes[] memory signatures = new bytes[](256);
        vouchers[255] = _voucher(5);
        signatures[255] = _sign(PAYER_KEY, vouchers[255]);
        payments.redeemMany(OPERATOR, vouchers, signatures);
        assertEq(token.balanceOf(OPERATOR), 5);
    }
}

contract InferencePaymentsCloseTest is PaymentsTest {
    function testFuzz_close_givesBackExactlyTheRest(uint128 deposited, uint128 claimed) public {
        deposited = uint128(bound(deposited, 1, RICH));
        claimed = uint128(bound(claimed, 0, deposited));
        _deposit(deposited);
        if (claimed != 0) _redeem(claimed);
        vm.expectEmit();
        emit IInferencePayments.CloseStarted(payer, OPERATOR, 0, START + DELAY);
        vm.prank(payer);
        payments.startClose(OPERATOR);
        vm.warp(START + DELAY);
        vm.expectEmit();
        emit IInferencePayments.Closed(payer, OPERATOR, 0, deposited - claimed);
        vm.prank(payer);
        payments.close(OPERATOR);

        assertEq(token.balanceOf(payer), RICH - claimed);
        assertEq(token.balanceOf(address(payments)), 0);
        IInferencePayments.Channel memory channel = payments.channelOf(payer, OPERATOR);
        assertEq(channel.epoch, 1);
        assertEq(channel.deposited + channel.claimed + channel.closableAt, 0);
    }

    function testFuzz_close_waitsForTheWholeDelay(uint256 waited) public {
        waited = bound(waited, 0, DELAY - 1);
        _deposit(10);
        vm.startPrank(payer);
        payments.startClose(OPERATOR);
        vm.warp(START + waited);
        vm.expectRevert(
            abi.encodeWithSelector(IInferencePayments.NotClosableYet.selector, START + DELAY, START + waited)
        );
        payments.close(OPERATOR);
        vm.stopPrank();
    }

    function test_close_isNotToBeHadInTheSecondBefore() public {
        testFuzz_close_waitsForTheWholeDelay(DELAY - 1);
        vm.warp(START + DELAY);
        vm.prank(payer);
        payments.close(OPERATOR);
        assertEq(token.balanceOf(payer), RICH);
    }

    function test_close_needsAStart() public {
        _deposit(10);
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.ChannelIsNotClosing.selector, payer, OPERATOR));
        vm.prank(payer);
        payments.close(OPERATOR);
    }

    function test_close_isThePayersAlone() public {
        _deposit(10);
        vm.prank(payer);
        payments.startClose(OPERATOR);
        vm.warp(START + DELAY);
        address[2] memory strangers = [other, OPERATOR];
        for (uint256 i = 0; i < 2; ++i) {
            vm.expectRevert(
                abi.encodeWithSelector(IInferencePayments.ChannelIsNotClosing.selector, strangers[i], OPERATOR)
            );
            vm.prank(strangers[i]);
            payments.close(OPERATOR);
        }
    }

    function test_close_ofASpentChannelMovesNothing() public {
        _deposit(10);
        _redeem(10);
        _close();
        assertEq(token.balanceOf(payer), RICH - 10);
        assertEq(payments.channelOf(payer, OPERATOR).epoch, 1);
    }

    function test_startClose_twiceDoesNotMoveTheTime() public {
        _deposit(10);
        vm.startPrank(payer);
        payments.startClose(OPERATOR);
        vm.warp(START + 5);
        vm.expectRevert(
            abi.encodeWithSelector(IInferencePayments.ChannelIsClosing.selector, payer, OPERATOR, START + DELAY)
        );
        payments.startClose(OPERATOR);
        vm.stopPrank();
    }

    function test_startClose_ofNothingIsRefused() public {
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.ChannelIsEmpty.selector, payer, OPERATOR));
        vm.prank(payer);
        payments.startClose(OPERATOR);
    }

    function test_aChannelCanBeClosedAgainAndAgain() public {
        for (uint64 i = 0; i < 3; ++i) {
            _deposit(10);
            _redeem(3);
            assertEq(payments.channelOf(payer, OPERATOR).epoch, i);
            _close();
        }
        assertEq(token.balanceOf(OPERATOR), 9);
        assertEq(token.balanceOf(payer), RICH - 9);
    }
}

contract InferencePaymentsOddTokensTest is PaymentsTest {
    function test_aTokenThatTakesAFeeIsRefused() public {
        FeeToken fees = new FeeToken(payer, 1000);
        InferencePayments place = new InferencePayments(fees, DELAY);
        vm.startPrank(payer);
        fees.approve(address(place), 1000);
        vm.expectRevert(abi.encodeWithSelector(IInferencePayments.ReceivedOtherAmount.selector, 990, 1000));
        place.deposit(payer, OPERATOR, 1000);
        vm.stopPrank();
        assertEq(fees.balanceOf(payer), 1000);
    }

    function test_aTokenThatReturnsNothingWorks() public {
        SilentToken silent = new SilentToken(payer, 1000);
        InferencePayments place = new InferencePayments(IERC20(address(silent)), DELAY);
        vm.startPrank(payer);
        silent.approve(address(place), 1000);
        place.depositWithPermit(OPERATOR, 1000, 0, 0, 0, 0); // it knows no permit; the approval serves
        vm.stopPrank();
        IInferencePayments.Voucher memory voucher = _voucher(1000);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, place.digestOf(voucher));
        place.redeem(voucher, abi.encodePacked(r, s, v));
        assertEq(silent.balanceOf(OPERATOR), 1000);
        vm.startPrank(payer);
        place.startClose(OPERATOR);
        vm.warp(START + DELAY);
        place.close(OPERATOR); // nothing is left, so nothing is moved, which it would refuse
        vm.stopPrank();
    }

    function test_aTokenThatCallsBackGetsNothingMore() public {
        HookToken hooks = new HookToken(payer, 1000);
        InferencePayments place = new InferencePayments(hooks, DELAY);
        IInferencePayments.Voucher memory voucher = _voucher(10);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, place.digestOf(voucher));
        bytes memory signature = abi.encodePacked(r, s, v);
        IInferencePayments.Voucher[] memory vouchers = new IInferencePayments.Voucher[](1);
        bytes[] memory signatures = new bytes[](1);
        (vouchers[0], signatures[0]) = (voucher, signature);
        bytes[5] memory calls = [
            abi.encodeCall(place.redeem, (voucher, signature)),
            abi.encodeCall(place.redeemMany, (OPERATOR, vouchers, signatures)),
            abi.encodeCall(place.deposit, (payer, OPERATOR, 1)),
            abi.encodeCall(place.depositWithPermit, (OPERATOR, 1, 0, 0, 0, 0)),
            abi.encodeCall(place.close, (OPERATOR))
        ];
        vm.prank(payer);
        hooks.approve(address(place), 1000);
        bytes32 refused =
            keccak256(abi.encodeWithSelector(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector));
        for (uint256 i = 0; i < calls.length; ++i) {
            hooks.callOnTransfer(address(place), calls[i]);
            vm.prank(payer);
            place.deposit(payer, OPERATOR, 10);
            assertTrue(!hooks.callSucceeded(), "a call from within a transfer went through");
            assertEq(keccak256(hooks.answer()), refused);
        }
        hooks.callOnTransfer(address(place), calls[0]);
        place.redeem(voucher, signature);
        assertEq(keccak256(hooks.answer()), refused);
        assertEq(hooks.balanceOf(OPERATOR), 10);
    }
}
