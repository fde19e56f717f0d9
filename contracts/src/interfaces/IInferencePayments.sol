// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @title Pays operators for answers without a transaction a call: deposits, and vouchers that their payers sign off-chain.
/// @notice One *channel* for each payer and operator. A payer deposits; with each answer it signs a voucher over the *whole* sum that
/// it owes in the channel so far; the operator keeps the newest and redeems it when it likes: the contract pays what the voucher's
/// total exceeds what was claimed before. So no voucher pays twice, an old one pays nothing, and one transaction settles any number
/// of calls. To leave, a payer starts to close: after `closeDelay`, in which the operator can still redeem, it takes the rest.
/// Closing begins the channel's next *epoch*; vouchers of an earlier epoch are worth nothing.
///
/// There is no owner, no fee, no upgrade path and no pause: money leaves a channel to its operator by the payer's signature, or to
/// its payer after the delay, and in no other way. Amounts are in the token's smallest unit, times in seconds since 1970.
/// @dev Assumes of the token: balances change by transfers only (no rebasing) and sending takes nothing beyond the amount. A token that
/// takes a fee is refused at the deposit. Callbacks are harmless. Tokens that are sent here without `deposit` belong to nobody.
/// A payer is an account with a key: a contract's signature (ERC-1271) could be withdrawn after the answer, so none is taken.
/// What an operator should know before it answers: the deposit less the claims covers the answer, `closableAt` is 0 or far enough,
/// the voucher expires late enough for it to redeem, and its epoch is the channel's.
interface IInferencePayments {
    /// @notice What stands between one payer and one operator.
    struct Channel {
        /// Put in, in this epoch.
        uint128 deposited;
        /// Paid out to the operator, in this epoch; never more than `deposited`.
        uint128 claimed;
        /// How often the channel was closed.
        uint64 epoch;
        /// From then on the payer may take the rest; 0 while it has not started to close.
        uint64 closableAt;
    }

    /// @notice What a payer signs (EIP-712: name "Quorate payments", version "1", this chain and contract).
    struct Voucher {
        address payer;
        address operator;
        /// The channel's epoch.
        uint64 epoch;
        /// All that is owed in this epoch, what was claimed already included.
        uint128 total;
        /// Tokens of text for which that is, in and out, in this epoch. Not used here: evidence against an over-claim.
        uint64 units;
        /// Digest of the last receipt that this pays for, and by its chain of all before. Not used here: evidence, too.
        bytes32 receiptHash;
        /// The last second in which this can be redeemed.
        uint64 expiry;
    }

    /// @notice Why a voucher pays nothing now. Two numbers explain it: what the voucher states, what the contract knows.
    enum Refusal {
        None,
        /// The operator's address; the operator whose batch it is in.
        OtherOperator,
        /// The epochs of voucher and channel.
        OtherEpoch,
        /// Its expiry; now.
        Expired,
        /// Its total; what was claimed before.
        NothingNew,
        /// Its total; what was deposited. Nothing is paid in part: a deposit makes it good.
        NotCovered,
        /// The payer's address; the address that signed, 0 if nobody did.
        NotSigned
    }

    event Deposited(
        address indexed payer,
        address indexed operator,
        uint64 indexed epoch,
        uint256 amount,
        uint256 deposited,
        address from
    );
    event Redeemed(
        address indexed payer,
        address indexed operator,
        uint64 indexed epoch,
        uint256 amount,
        uint256 total,
        uint64 units,
        bytes32 receiptHash
    );
    /// @notice A voucher of a batch that was passed over.
    event Refused(address indexed payer, address indexed operator, Refusal why, uint256 stated, uint256 known);
    event CloseStarted(address indexed payer, address indexed operator, uint64 indexed epoch, uint64 closableAt);
    event Closed(address indexed payer, address indexed operator, uint64 indexed epoch, uint256 rest);

    error TokenHasNoCode(address token);
    error CloseDelayOutOfRange(uint64 delay, uint64 shortest, uint64 longest);
    error PartyNotAllowed(address party);
    error AmountIsZero();
    error AmountTooLarge(uint256 amount, uint256 largest);
    /// @notice The token took a fee, or moved something else than it was told to.
    error ReceivedOtherAmount(uint256 received, uint256 amount);
    error ChannelIsClosing(address payer, address operator, uint64 closableAt);
    error ChannelIsEmpty(address payer, address operator);
    error ChannelIsNotClosing(address payer, address operator);
    error NotClosableYet(uint64 closableAt, uint256 now_);
    error VoucherRefused(Refusal why, uint256 stated, uint256 known);
    error SignatureCount(uint256 signatures, uint256 vouchers);
    error VoucherCount(uint256 count, uint256 most);
    /// @notice Every voucher of the batch was refused (the events that say why are gone with it: redeem one to learn it).
    error NothingRedeemed(uint256 vouchers);

    /// @notice Moves `amount` from the caller into the channel of `payer` with `operator`; what is left returns to the payer, whoever
    /// deposited. Refused while the channel closes. The token must have been approved for this contract.
    function deposit(address payer, address operator, uint256 amount) external;

    /// @notice `deposit` for the caller itself with an approval that it signed (EIP-2612): one transaction in all. If the permit was
    /// used already, by whoever saw it in the mempool, the approval that it left serves.
    function depositWithPermit(address operator, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external;

    /// @notice Pays the voucher's operator what its total exceeds the claims so far, or reverts with VoucherRefused. Anybody may send it.
    function redeem(Voucher calldata voucher, bytes calldata signature) external;

    /// @notice Redeems vouchers of one operator by one transfer. One that is refused is passed over by an event, so that no payer
    /// can spoil the batch of an operator; reverts if all are.
    /// @param vouchers 1 to 256, usually the newest of each payer.
    /// @param signatures one for each, in their order.
    function redeemMany(address operator, Voucher[] calldata vouchers, bytes[] calldata signatures) external;

    /// @notice The caller begins to close its channel with `operator`: no more deposits, and after `closeDelay` it can `close`.
    function startClose(address operator) external;

    /// @notice Sends the caller the rest of its channel with `operator` and begins the channel's next epoch.
    function close(address operator) external;

    /// @notice Seconds from `startClose` to `close`, at most 30 days: the time that an operator has to redeem.
    function closeDelay() external view returns (uint64);

    function channelOf(address payer, address operator) external view returns (Channel memory);

    /// @notice What a payer signs of this voucher (EIP-712).
    function digestOf(Voucher calldata voucher) external view returns (bytes32);
}
