// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {InferencePayments} from "../src/InferencePayments.sol";
import {QuorateToken} from "../src/QuorateToken.sol";
import {IInferencePayments} from "../src/interfaces/IInferencePayments.sol";
import {IQuorateToken} from "../src/interfaces/IQuorateToken.sol";
import {Test, Vm} from "./Test.sol";

/// @dev Two payers and two operators do what they may, in any order; every voucher that was ever signed is tried again and again.
/// It keeps its own books of what must follow, and an unexpected revert is a finding (fail_on_revert).
contract Market is Test {
    uint256 public constant COUNT = 2;
    uint256 public constant EACH = 1e24;

    struct Book {
        uint256 deposited;
        uint256 claimed;
        uint256 epoch;
        uint256 closableAt;
    }

    QuorateToken public token;
    InferencePayments public payments;
    mapping(address payer => mapping(address operator => Book)) public books;
    mapping(address account => uint256) public deposits;
    mapping(address account => uint256) public received;
    IInferencePayments.Voucher[] private _vouchers;
    bytes[] private _signatures;

    constructor() {
        IQuorateToken.Allocation[] memory allocations = new IQuorateToken.Allocation[](COUNT);
        for (uint256 i = 0; i < COUNT; ++i) {
            allocations[i] = IQuorateToken.Allocation({account: payer(i), amount: EACH});
        }
        token = new QuorateToken(allocations);
        payments = new InferencePayments(token, 1 days);
        for (uint256 i = 0; i < COUNT; ++i) {
            vm.prank(payer(i));
            token.approve(address(payments), type(uint256).max);
        }
    }

    function payer(uint256 i) public pure returns (address) {
        return vm.addr(_key(i));
    }

    function operator(uint256 i) public pure returns (address) {
        return address(uint160(0x7000 + i % COUNT));
    }

    function deposit(uint256 from, uint256 who, uint256 with, uint256 amount) external {
        Book storage book = books[payer(who)][operator(with)];
        uint256 balance = token.balanceOf(payer(from));
        if (book.closableAt != 0 || balance == 0) return;
        amount = 1 + amount % (balance / 8 + 1);
        vm.prank(payer(from));
        payments.deposit(payer(who), operator(with), amount);
        book.deposited += amount;
        deposits[payer(from)] += amount;
    }

    /// @dev Signs for any total and epoch near the true ones: too much, too little, too early and too late as well.
    function sign(uint256 who, uint256 with, uint256 total, uint256 epoch, uint256 expiry) external {
        Book storage book = books[payer(who)][operator(with)];
        IInferencePayments.Voucher memory voucher = IInferencePayments.Voucher({
            payer: payer(who),
            operator: operator(with),
            epoch: uint64(epoch % 4 == 0 ? book.epoch + 1 : book.epoch),
            total: uint128(total % (book.deposited + book.deposited / 8 + 2)),
            units: 0,
            receiptHash: 0,
            expiry: uint64(vm.getBlockTimestamp() + expiry % 10 days)
        });
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(_key(who), payments.digestOf(voucher));
        _vouchers.push(voucher);
        _signatures.push(abi.encodePacked(r, s, v));
    }

    function redeem(uint256 which) external {
        if (_vouchers.length == 0) return;
        which %= _vouchers.length;
        IInferencePayments.Voucher memory voucher = _vouchers[which];
        uint256 due = _book(voucher);
        try payments.redeem(voucher, _signatures[which]) {
            assertTrue(due != 0, "a voucher paid that is worth nothing");
        } catch {
            assertEq(due, 0);
        }
    }

    function redeemMany(uint256 first, uint256 with) external {
        uint256 count = _vouchers.length;
        if (count == 0) return;
        first %= count;
        count = count - first > 8 ? 8 : count - first;
        IInferencePayments.Voucher[] memory vouchers = new IInferencePayments.Voucher[](count);
        bytes[] memory signatures = new bytes[](count);
        uint256 due = 0;
        for (uint256 i = 0; i < count; ++i) {
            (vouchers[i], signatures[i]) = (_vouchers[first + i], _signatures[first + i]);
            if (vouchers[i].operator == operator(with)) due += _book(vouchers[i]);
        }
        try payments.redeemMany(operator(with), vouchers, signatures) {
            assertTrue(due != 0, "a batch paid that is worth nothing");
        } catch {
            assertEq(due, 0);
        }
    }

    function startClose(uint256 who, uint256 with) external {
        Book storage book = books[payer(who)][operator(with)];
        if (book.closableAt != 0 || book.deposited == 0) return;
        vm.prank(payer(who));
        payments.startClose(operator(with));
        book.closableAt = vm.getBlockTimestamp() + 1 days;
    }

    function close(uint256 who, uint256 with) external {
        Book storage book = books[payer(who)][operator(with)];
        if (book.closableAt == 0 || vm.getBlockTimestamp() < book.closableAt) return;
        vm.prank(payer(who));
        payments.close(operator(with));
        received[payer(who)] += book.deposited - book.claimed;
        books[payer(who)][operator(with)] = Book(0, 0, book.epoch + 1, 0);
    }

    function wait(uint256 time) external {
        vm.warp(vm.getBlockTimestamp() + time % 1 days);
    }

    /// @dev Books what the voucher is worth now, by the words of the interface.
    function _book(IInferencePayments.Voucher memory voucher) private returns (uint256 due) {
        Book storage book = books[voucher.payer][voucher.operator];
        if (voucher.epoch != book.epoch || vm.getBlockTimestamp() > voucher.expiry) return 0;
        if (voucher.total <= book.claimed || voucher.total > book.deposited) return 0;
        due = voucher.total - book.claimed;
        book.claimed = voucher.total;
        received[voucher.operator] += due;
    }

    function _key(uint256 i) private pure returns (uint256) {
        return 0xA000 + i % COUNT;
    }
}

contract InferencePaymentsInvariantTest is Test {
    Market internal market;

    function setUp() public {
        vm.warp(1_900_000_000);
        market = new Market();
    }

    /// @dev What forge calls at random.
    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(market);
    }

    /// @dev Every token is where the books say: what was put in is with an operator by a voucher, back with its payer, or in a channel.
    function invariant_everyTokenIsAccountedFor() public view {
        InferencePayments payments = market.payments();
        QuorateToken token = market.token();
        uint256 owed = 0;
        for (uint256 i = 0; i < market.COUNT(); ++i) {
            address payer = market.payer(i);
            for (uint256 j = 0; j < market.COUNT(); ++j) {
                IInferencePayments.Channel memory channel = payments.channelOf(payer, market.operator(j));
                (uint256 deposited, uint256 claimed, uint256 epoch, uint256 closableAt) =
                    market.books(payer, market.operator(j));
                assertEq(channel.deposited, deposited);
                assertEq(channel.claimed, claimed);
                assertEq(channel.epoch, epoch);
                assertEq(channel.closableAt, closableAt);
                assertTrue(channel.claimed <= channel.deposited, "claimed <= deposited");
                owed += channel.deposited - channel.claimed;
            }
            assertEq(token.balanceOf(payer), market.EACH() - market.deposits(payer) + market.received(payer));
            assertEq(token.balanceOf(market.operator(i)), market.received(market.operator(i)));
        }
        assertEq(token.balanceOf(address(payments)), owed);
    }
}
