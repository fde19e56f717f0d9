// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

import {IInferencePayments} from "./interfaces/IInferencePayments.sol";

/// @notice IInferencePayments says what it does.
contract InferencePayments is IInferencePayments, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    bytes32 public constant VOUCHER_TYPEHASH = keccak256(
        "Voucher(address payer,address operator,uint64 epoch,uint128 total,uint64 units,bytes32 receiptHash,uint64 expiry)"
    );
    uint64 public constant LONGEST_CLOSE_DELAY = 30 days;
    uint256 public constant MOST_VOUCHERS = 256;

    IERC20 public immutable token;
    uint64 public immutable closeDelay;

    mapping(address payer => mapping(address operator => Channel)) private _channels;

    constructor(IERC20 token_, uint64 closeDelay_) EIP712("Quorate payments", "1") {
        if (address(token_).code.length == 0) revert TokenHasNoCode(address(token_));
        if (closeDelay_ == 0 || closeDelay_ > LONGEST_CLOSE_DELAY) {
            revert CloseDelayOutOfRange(closeDelay_, 1, LONGEST_CLOSE_DELAY);
        }
        token = token_;
        closeDelay = closeDelay_;
    }

    /// @inheritdoc IInferencePayments
    function deposit(address payer, address operator, uint256 amount) external nonReentrant {
        _deposit(payer, operator, amount);
    }

    /// @inheritdoc IInferencePayments
    function depositWithPermit(address operator, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external
        nonReentrant
    {
        // A refused permit is no reason to stop: the transfer below is what needs the approval, and fails without it.
        try IERC20Permit(address(token)).permit(msg.sender, address(this), amount, deadline, v, r, s) {} catch {}
        _deposit(msg.sender, operator, amount);
    }

    /// @inheritdoc IInferencePayments
    function redeem(Voucher calldata voucher, bytes calldata signature) external nonReentrant {
        (Refusal why, uint256 stated, uint256 known) = _refusal(voucher, signature);
        if (why != Refusal.None) revert VoucherRefused(why, stated, known);
        token.safeTransfer(voucher.operator, _claim(voucher));
    }

    /// @inheritdoc IInferencePayments
    function redeemMany(address operator, Voucher[] calldata vouchers, bytes[] calldata signatures)
        external
        nonReentrant
    {
        if (vouchers.length == 0 || vouchers.length > MOST_VOUCHERS) {
            revert VoucherCount(vouchers.length, MOST_VOUCHERS);
        }
        if (signatures.length != vouchers.length) revert SignatureCount(signatures.length, vouchers.length);

        uint256 sum = 0;
        for (uint256 i = 0; i < vouchers.length; ++i) {
            Voucher calldata voucher = vouchers[i];
            (Refusal why, uint256 stated, uint256 known) = voucher.operator == operator
                ? _refusal(voucher, signatures[i])
                : (Refusal.OtherOperator, uint160(voucher.operator), uint160(operator));
            if (why == Refusal.None) sum += _claim(voucher);
            else emit Refused(voucher.payer, operator, why, stated, known);
        }
        if (sum == 0) revert NothingRedeemed(vouchers.length);
        token.safeTransfer(operator, sum);
    }

    /// @inheritdoc IInferencePayments
    function startClose(address operator) external {
        Channel storage channel = _channels[msg.sender][operator];
        if (channel.closableAt != 0) revert ChannelIsClosing(msg.sender, operator, channel.closableAt);
        if (channel.deposited == 0) revert ChannelIsEmpty(msg.sender, operator);

        channel.closableAt = uint64(block.timestamp) + closeDelay;

        emit CloseStarted(msg.sender, operator, channel.epoch, channel.closableAt);
    }

    /// @inheritdoc IInferencePayments
    function close(address operator) external nonReentrant {
        Channel storage channel = _channels[msg.sender][operator];
        if (channel.closableAt == 0) revert ChannelIsNotClosing(msg.sender, operator);
        if (block.timestamp < channel.closableAt) revert NotClosableYet(channel.closableAt, block.timestamp);
        uint256 rest = channel.deposited - channel.claimed;

        emit Closed(msg.sender, operator, channel.epoch, rest);
        _channels[msg.sender][operator] = Channel({deposited: 0, claimed: 0, epoch: channel.epoch + 1, closableAt: 0});

        if (rest != 0) token.safeTransfer(msg.sender, rest);
    }

    /// @inheritdoc IInferencePayments
    function channelOf(address payer, address operator) external view returns (Channel memory) {
        return _channels[payer][operator];
    }

    /// @inheritdoc IInferencePayments
    function digestOf(Voucher calldata voucher) public view returns (bytes32) {
        return _hashTypedDataV4(
            keccak256(
                abi.encode(
                    VOUCHER_TYPEHASH,
                    voucher.payer,
                    voucher.operator,
                    voucher.epoch,
                    voucher.total,
                    voucher.units,
                    voucher.receiptHash,
                    voucher.expiry
                )
            )
        );
    }

    function _deposit(address payer, address operator, uint256 amount) private {
        // Money of these could never leave, or would leave to where it came from.
        if (payer == address(0) || payer == address(this)) revert PartyNotAllowed(payer);
        if (operator == address(0) || operator == address(this)) revert PartyNotAllowed(operator);
        if (amount == 0) revert AmountIsZero();
        Channel storage channel = _channels[payer][operator];
        if (channel.closableAt != 0) revert ChannelIsClosing(payer, operator, channel.closableAt);
        uint256 room = type(uint128).max - channel.deposited;
        if (amount > room) revert AmountTooLarge(amount, room);

        // forge-lint: disable-next-line(unsafe-typecast)
        channel.deposited += uint128(amount);

        emit Deposited(payer, operator, channel.epoch, amount, channel.deposited, msg.sender);
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != amount) revert ReceivedOtherAmount(received, amount);
    }

    /// @dev Books a voucher that nothing speaks against; the caller sends the money.
    function _claim(Voucher calldata voucher) private returns (uint256 amount) {
        Channel storage channel = _channels[voucher.payer][voucher.operator];
        amount = voucher.total - channel.claimed;
        channel.claimed = voucher.total;
        emit Redeemed(
            voucher.payer, voucher.operator, voucher.epoch, amount, voucher.total, voucher.units, voucher.receiptHash
        );
    }

    /// @dev Nothing changed: what speaks against the voucher, the signature (the dearest) last.
    function _refusal(Voucher calldata voucher, bytes calldata signature)
        private
        view
        returns (Refusal why, uint256 stated, uint256 known)
    {
        Channel storage channel = _channels[voucher.payer][voucher.operator];
        if (voucher.epoch != channel.epoch) return (Refusal.OtherEpoch, voucher.epoch, channel.epoch);
        if (block.timestamp > voucher.expiry) return (Refusal.Expired, voucher.expiry, block.timestamp);
        if (voucher.total <= channel.claimed) return (Refusal.NothingNew, voucher.total, channel.claimed);
        if (voucher.total > channel.deposited) return (Refusal.NotCovered, voucher.total, channel.deposited);
        (address signer,,) = ECDSA.tryRecoverCalldata(digestOf(voucher), signature);
        if (signer != voucher.payer) return (Refusal.NotSigned, uint160(voucher.payer), uint160(signer));
    }
}
